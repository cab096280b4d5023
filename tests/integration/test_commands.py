"""The commands one after the other, in an empty folder, on the shipped sample: from images to a generator's images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import VQModel as DiffusersModel
from PIL import Image

import hf_vq_cli

ONCE = "--eval_steps 0 --save_steps 0 --logging_steps 1 --max_eval_images 16 --train_batch_size 8 --use_cpu"
IMAGES = "--check_images_up_to 0 --max_steps 2 --num_codes 16"


def run(line: str) -> None:
    """A command in this process."""
    try:
        hf_vq_cli.main(line.split())
    finally:
        AcceleratorState._reset_state(True)
        PartialState._reset_state()
        GradientState._reset_state()


def test_every_command_does_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each takes what the one before has written, as the README says."""
    monkeypatch.chdir(tmp_path)
    network = "--architecture vqgan --channel_multiplier 1 2 --base_channels 8 --num_res_blocks 1 --norm_num_groups 4"
    run(f"train-tokenizer --config noto_emoji_32 {network} --output_dir vq {IMAGES} {ONCE}")
    run("tokenize --tokenizer vq/final --dataset noto-emoji-32 --splits test --output_dir tokens --use_cpu")
    width = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --max_steps 2 --warmup_steps 0"
    data = "--tokens tokens --tokenizer vq/final --train_split test --eval_split none --num_sample_images 2"
    run(f"train-generator --config noto_emoji_32_maskgit {data} --output_dir maskgit {width} {ONCE} --sample_steps 2")
    backbone = "--backbone_config none --base_channels 4 --warmup_steps 0"
    run(f"train-classifier --config noto_emoji_32_classifier {backbone} --output_dir alexnet {IMAGES} {ONCE}")
    assert all((tmp_path / name / "final" / "README.md").is_file() for name in ("vq", "maskgit", "alexnet"))

    run("evaluate --model vq/final --dataset noto-emoji-32 --max_images 32 --output_dir numbers --use_cpu")
    assert json.loads(Path("numbers/evaluation.json").read_text())["results"][0]["metrics"]["psnr"] > 0
    run("convert --checkpoint vq/final --output_dir theirs --to diffusers")
    assert DiffusersModel.from_pretrained("theirs").config["num_vq_embeddings"] == 16
    run("convert --checkpoint theirs --output_dir back --image_size 32")
    assert "layout diffusers" in capsys.readouterr().out

    installed = Path(sys.executable).with_name("hf-vq")
    command = [str(installed)] if installed.exists() else [sys.executable, "-m", "hf_vq"]
    words = "generate --model maskgit/final --class_labels 3 flags --num_steps 2 --output grid.png".split()
    result = subprocess.run([*command, *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with Image.open("grid.png") as image:
        assert image.size == (64, 32)
