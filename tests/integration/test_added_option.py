"""A sampling option is added in one place: a field of `MaskGitSampling` reaches everything that samples."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
LAST_OPTION = "    top_p: float | None = field("
NEW_OPTION = '    sharpness: float | None = field(default=None, metadata={"help": "Of the images."})\n'

USE = """
import inspect, json, logging, runpy, sys
from pathlib import Path

import torch
from transformers import pipeline

import hf_vq
from hf_vq import GeneratorTrainer, GeneratorTrainingArguments, MaskGitConfig, MaskGitModel, MaskGitSampling, VQConfig

logging.disable()
assert Path(hf_vq.__file__).is_relative_to(Path.cwd()), hf_vq.__file__
seen = []
fill = MaskGitModel._fill

def record(self, canvas, sampling, return_intermediates):
    seen.append(sampling.sharpness)
    return fill(self, canvas, sampling, return_intermediates)

MaskGitModel._fill = record
answer = {}

def saw(name):
    answer[name] = sorted(set(seen))
    seen.clear()

vq = {"architecture": "sqvae", "image_size": 16, "base_channels": 8, "num_res_blocks": 1, "num_codes": 16}
small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_classes": 2}
model = MaskGitModel(MaskGitConfig(vq_config=VQConfig(**vq), **small)).eval()
hf_vq.VQImageProcessor(image_size=16).save_pretrained("model")
model.save_pretrained("model")

model.generate(0, sharpness=1.0)
model.generate(0, sampling=MaskGitSampling(sharpness=2.0))
saw("generate")
pipeline("image-generation", model="model")("LABEL_1", sharpness=3.0)
saw("pipeline")

def run(script, words):
    runpy.run_path(f"scripts/{script}.py")["main"](words.split())
    saw(f"{script}.py")

run("generate", "--model model --output out.png --device cpu --sharpness 4")
run("evaluate", "--model model --dataset images --split train --output_dir measured --use_cpu --disable_tqdm "
    "--sharpness 5")
protocol = json.loads(Path("measured/evaluation.json").read_text())["protocol"]
answer["protocol"] = protocol["sampling"]["sharpness"]

rows = [{"image_tokens": torch.zeros(4, 4, dtype=torch.long), "label": 0}] * 4
args = GeneratorTrainingArguments(
    output_dir="run", max_steps=1, use_cpu=True, num_sample_images=1, disable_tqdm=True, sample_sharpness=6.0
)
trainer = GeneratorTrainer(model, args, rows, rows)
trainer.train()
saw("trainer")
answer["card"] = "sharpness=6.0" in Path("run/final/README.md").read_text()
answer["fixed"] = [name for name in args.fixed_on_resume() if name.startswith("sample_")]
answer["signature"] = "sharpness" in inspect.signature(model.generate).parameters
answer["docstring"] = "sharpness (defaults to `None`): Of the images." in MaskGitSampling.__doc__
print(json.dumps(answer))
"""


def test_a_sampling_option_is_added_in_one_place(tmp_path: Path) -> None:
    """With one line more, in a copy of the sources, generate, pipeline, scripts, trainer and cards have the option."""
    for folder in ("modeling", "hf_vq", "scripts"):
        leave_out = shutil.ignore_patterns("__pycache__", "*.parquet")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=leave_out)
    source = tmp_path / "modeling" / "options_maskgit.py"
    text = source.read_text(encoding="utf-8")
    assert text.count(LAST_OPTION) == 1
    source.write_text(text.replace(LAST_OPTION, NEW_OPTION + LAST_OPTION), encoding="utf-8")
    (tmp_path / "images").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "use.py").write_text(USE, encoding="utf-8")

    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    process = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert json.loads(process.stdout.splitlines()[-1]) == {
        "generate": [1.0, 2.0],
        "pipeline": [3.0],
        "generate.py": [4.0],
        "evaluate.py": [5.0],
        "protocol": 5.0,
        "trainer": [6.0],
        "card": True,
        "fixed": [],
        "signature": True,
        "docstring": True,
    }
