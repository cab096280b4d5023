"""The generator's training command as people start it: from images to a repository, killed, and with slips."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from hf_vq import MaskGitConfig, MaskGitModel, VQConfig, VQImageProcessor, VQModel
from hf_vq.commands import train_generator
from hf_vq.data.tokenize import TokenizationArguments, tokenize_dataset
from hf_vq.training import generator_data
from hf_vq.training.arguments import GeneratorTrainingArguments
from hf_vq.training.checkpoints import list_checkpoints
from hf_vq.utils.hashes import weights_sha256

TINY = (
    "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --max_steps 2 --train_batch_size 4 --use_cpu "
    "--disable_tqdm --num_sample_images 2 --sample_steps 2"
).split()
Main = Callable[[list[str]], None]


@pytest.fixture
def main() -> Iterator[Main]:
    """The command's main function, in this process."""
    yield train_generator.main
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


def save_tokenizer(folder: Path, seed: int) -> Path:
    """A tiny tokenizer with an image processor."""
    torch.manual_seed(seed)
    config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, num_res_blocks=1, num_codes=16)
    VQModel(config).save_pretrained(folder)
    VQImageProcessor(image_size=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer."""
    return save_tokenizer(tmp_path_factory.mktemp("vq"), seed=0)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Tokens of twelve images in the classes cats and dogs, each image and its mirror image."""
    images = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(12):
        path = images / "train" / ("cats", "dogs")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    folder = tmp_path_factory.mktemp("tokens")
    tokenize_dataset(
        TokenizationArguments(str(tokenizer), str(images), str(folder), flip=True, use_cpu=True, disable_tqdm=True)
    )
    PartialState._reset_state()
    return folder


def words(tokens: Path, tokenizer: Path, output_dir: Path, *more: str) -> list[str]:
    """A command line."""
    return [*TINY, "--tokens", str(tokens), "--tokenizer", str(tokenizer), "--output_dir", str(output_dir), *more]


def test_it_makes_a_repository_from_tokens(main: Main, tokens: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Classes and their names are the tokens', the tokenizer inside is the one given, and the card names both."""
    main(words(tokens, tokenizer, tmp_path / "out", "--eval_fraction", "0.25"))

    final = tmp_path / "out" / "final"
    model = AutoModel.from_pretrained(final)
    assert isinstance(model, MaskGitModel)
    assert model.config.num_classes == 2 and model.config.id2label == {0: "cats", 1: "dogs"}
    assert weights_sha256(model.tokenizer) == weights_sha256(VQModel.from_pretrained(tokenizer))
    card = (final / "README.md").read_text()
    for part in (f" | {tokens.name} | 25% of train, held out | 3 |", "| 2: cats, dogs |", "('cats')[\"image\"]"):
        assert part in card, part
    assert f"| tokenizer | {tokenizer.name} |" in card
    for text in (card, (final / "config.json").read_text()):
        assert str(tokens) not in text and str(tokenizer) not in text


def test_it_streams_tokens(main: Main, tokens: Path, tokenizer: Path, tmp_path: Path) -> None:
    """--streaming trains on the same classes, counts the same epochs, and goes on from a checkpoint."""
    stream = words(tokens, tokenizer, tmp_path / "out", "--streaming", "--logging_steps", "1")
    main(stream)
    main([*stream, "--max_steps", "9", "--resume_from_checkpoint", "latest"])

    config = MaskGitConfig.from_pretrained(tmp_path / "out" / "final")
    assert config.num_classes == 2 and config.id2label == {0: "cats", 1: "dogs"}
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["epoch"] for line in lines}[6] == 1  # 6 batches of 4 for 12 images in 2 views


def test_images_are_held_out_with_all_their_views(
    tokens: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No view of a held-out image is trained on, and it is measured once; a seed decides which images they are."""
    monkeypatch.setattr(generator_data, "COLUMNS", ("key", "view"))
    model = VQModel.from_pretrained(tokenizer)
    held = []
    for seed in (0, 0, 1):
        args = GeneratorTrainingArguments(str(tmp_path), tokens=str(tokens), eval_fraction=0.34, seed=seed)
        train, held_out = generator_data.build_token_datasets(args, model)
        keys = [row["key"] for row in held_out]
        assert len(set(keys)) == 4 and {row["view"] for row in held_out} == {"center"}
        views = {(row["key"], row["view"]) for row in train}
        assert len(views) == len(train) == 16 and not {key for key, _ in views} & set(keys)
        held.append(keys)

    assert held[0] == held[1] != held[2]


def test_a_killed_run_ends_bit_equal_to_an_uninterrupted_one(
    main: Main, tokens: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """SIGKILL, then --resume_from_checkpoint latest: the final weights and the measures are the same."""
    settings = ["--max_steps", "12", "--save_steps", "2", "--eval_steps", "4", "--logging_steps", "3", "--use_ema"]
    killed = words(tokens, tokenizer, tmp_path / "killed", *settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_vq.commands.train_generator", *killed],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not list_checkpoints(tmp_path / "killed"):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "final").exists(), "the kill came too late to test anything"

    torch.set_num_threads(1)
    main([*killed, "--resume_from_checkpoint", "latest"])
    main(words(tokens, tokenizer, tmp_path / "straight", *settings))

    finals, measures = [], []
    for name in ("killed", "straight"):
        finals.append(load_file(tmp_path / name / "final" / "model.safetensors"))
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        measures.append([{key: value for key, value in line.items() if "second" not in key} for line in lines])
    assert finals[0].keys() == finals[1].keys()
    assert all(torch.equal(finals[0][key], finals[1][key]) for key in finals[0])
    assert measures[0] == measures[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num_classes", "1"], "labels from 0 to 1, but the model has num_classes=1.*--num_classes 2"),
        (["--eval_split", "validation"], "unknown split 'validation' of .*: available are train"),
        (["--vq_config", "5"], "model.vq_config is the tokenizer's.*another --tokenizer"),
        (["--num_attention_heads", "5"], "`num_attention_heads` must divide `hidden_size`"),
        (["--hidden_sise", "5"], "Did you mean 'model.hidden_size'"),
        (["--tokens", "none"], "No token data set is named. Give --tokens"),
        (["--tokenizer", "none"], "No tokenizer is named. Give --tokenizer"),
        (["--max_steps", "0"], "max_steps must be at least 1"),
    ],
)
def test_a_slip_ends_with_one_line_before_anything_is_written(
    main: Main, tokens: Path, tokenizer: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    """Data that do not fit, unknown names and impossible values end the script with a message, not a traceback."""
    with pytest.raises(SystemExit, match=message):
        main(words(tokens, tokenizer, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_tokens_of_another_tokenizer_are_refused(main: Main, tokens: Path, tmp_path: Path) -> None:
    """The same configuration with other weights is another tokenizer."""
    other = save_tokenizer(tmp_path / "other", seed=1)

    with pytest.raises(SystemExit, match=r"(?s)were made by another tokenizer:.*weights_sha256"):
        main(words(tokens, other, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_generator_is_no_tokenizer(main: Main, tokens: Path, tokenizer: Path, tmp_path: Path) -> None:
    """A generator's folder, although a tokenizer is inside, is named for what it is."""
    config = MaskGitConfig(
        vq_config=VQModel.from_pretrained(tokenizer).config, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    MaskGitModel(config).save_pretrained(tmp_path / "generator")

    with pytest.raises(SystemExit, match="is not a tokenizer but a MaskGitModel"):
        main(words(tokens, tmp_path / "generator", tmp_path / "out"))


def test_a_model_without_classes_ignores_labels(main: Main, tokens: Path, tokenizer: Path, tmp_path: Path) -> None:
    """--num_classes 0 trains on all images as they are."""
    main(words(tokens, tokenizer, tmp_path / "out", "--num_classes", "0", "--max_steps", "1"))

    assert AutoModel.from_pretrained(tmp_path / "out" / "final").config.num_classes == 0


def test_help_names_the_fields_of_trainer_and_model(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    """--help shows how to start it, every training argument and the model's fields."""
    with pytest.raises(SystemExit):
        main(["--help"])

    text = capsys.readouterr().out
    for part in ("accelerate launch", "--tokens", "--num_distance_images", "mask_schedule", "hidden_size"):
        assert part in text
    assert "--dataset DATASET" not in text
