"""The commands with tokenizers whose pixels are in [0, 1]: the same pictures as those of their twins in [-1, 1]."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image, ImageSequence
from safetensors.torch import save_file

from hf_vq import MaskGitConfig, MaskGitModel, VQImageProcessor, VQModel

from ...tiny_tokens import picture
from ...twin_tokenizers import TINY, twin_tokenizers


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its state in class attributes; each test begins without one."""
    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


def run(command: str, **options: Any) -> None:
    """A command's main function, in this process."""
    words = [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]
    importlib.import_module(f"hf_vq.commands.{command}").main(words)


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same generator with each of the twins inside, and the second as an older version would have saved it."""
    folder = tmp_path_factory.mktemp("generators")
    for tokenizer, name in zip(twin_tokenizers(), ("signed", "unit"), strict=True):
        torch.manual_seed(1)
        config = MaskGitConfig(
            vq_config=tokenizer.config, num_classes=2, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        MaskGitModel(config, tokenizer=tokenizer).save_pretrained(folder / name)
    MaskGitModel.from_pretrained(folder / "unit").save_pretrained(folder / "old")
    settings = json.loads((folder / "old" / "config.json").read_text())
    del settings["vq_config"]["pixel_range"]
    (folder / "old" / "config.json").write_text(json.dumps(settings))
    VQImageProcessor(image_size=16, do_normalize=False).save_pretrained(folder / "old")
    return [folder / name for name in ("signed", "unit", "old")]


def read(path: Path) -> list[np.ndarray]:
    """The frames of a picture."""
    frames = ImageSequence.Iterator(Image.open(path))
    return [np.asarray(frame.convert("RGB")).astype(int) for frame in frames]


@pytest.mark.parametrize("output", ["grid.png", "steps.gif", "renewed.png"])
def test_generate_paints_the_same(generators: list[Path], output: str, tmp_path: Path) -> None:
    """A grid, an animation with gray cells, and an image of which a part is made anew."""
    options: dict[str, Any] = {"class_labels": "0 1", "num_steps": 4, "device": "cpu"}
    if output == "renewed.png":
        picture(0, (16, 16)).save(tmp_path / "image.png")
        mask = np.zeros((16, 16), dtype=np.uint8)
        mask[:, 8:] = 255
        Image.fromarray(mask).save(tmp_path / "mask.png")
        options |= {"image": tmp_path / "image.png", "mask": tmp_path / "mask.png"}
    frames = []
    for folder in generators:
        run("generate", model=folder, output=tmp_path / folder.name / output, **options)
        frames.append(read(tmp_path / folder.name / output))
    assert frames[0][-1].std() > 20
    for other in frames[1:]:
        for first, second in zip(frames[0], other, strict=True):
            # The palette of an animation is chosen anew for each.
            assert abs(first - second).max() <= 1 if output.endswith("png") else abs(first - second).mean() < 2
    if output == "steps.gif":
        for steps in frames:
            assert (abs(steps[0] - 128).max(-1) <= 1).mean() > 0.5


def test_a_converted_tokenizer_comes_back_right(tmp_path: Path) -> None:
    """Another project's weights for [0, 1] say so in their configuration, and measure what their twin's do."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        picture(number, (16, 16)).save(tmp_path / "images" / f"{number}.png")
    measured = []
    for model, name, options in zip(twin_tokenizers(), ("signed", "unit"), ({}, {"no_normalize": ""}), strict=True):
        theirs = {key: value.contiguous() for key, value in model.state_dict().items() if "quantize." not in key}
        theirs["quantize.embedding.weight"] = model.quantize.get_codebook().detach()
        (tmp_path / "theirs" / name).mkdir(parents=True)
        save_file(theirs, tmp_path / "theirs" / name / "model.safetensors")
        folder = tmp_path / name
        run("convert_checkpoint", checkpoint=tmp_path / "theirs" / name, output_dir=folder, image_size=16, **options)
        assert json.loads((folder / "config.json").read_text())["pixel_range"] == model.config.pixel_range
        run(
            "evaluate", model=folder, dataset=tmp_path / "images", split="train", output_dir=folder / "measured",
            disable_tqdm="true", use_cpu="true",
        )  # fmt: skip
        written = json.loads((folder / "measured" / "evaluation.json").read_text())
        measured.append(written["results"][0]["metrics"])
    assert measured[1] == pytest.approx(measured[0], rel=1e-3) and measured[0]["active_codes"] > 5


@pytest.mark.filterwarnings("ignore:The training set has")
def test_training_reads_the_range(tmp_path: Path) -> None:
    """`--pixel_range 0 1` reaches data, model, processor and the numbers."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        picture(number, (16, 16)).save(tmp_path / "images" / f"{number}.png")
    fields = {name: value for name, value in TINY.items() if not isinstance(value, list)}
    run(
        "train_tokenizer", dataset=tmp_path / "images", eval_split="train", output_dir=tmp_path / "run", max_steps=1,
        train_batch_size=2, learning_rate=1e-9, disable_tqdm="true", use_cpu="true", pixel_range="0 1",
        channel_multiplier="1 2", **fields,
    )  # fmt: skip
    final = tmp_path / "run" / "final"
    model = VQModel.from_pretrained(final).eval()
    processor = VQImageProcessor.from_pretrained(final)
    assert model.config.pixel_range == [0.0, 1.0] and not processor.do_normalize
    pixels = processor([picture(number, (16, 16)) for number in range(6)], return_tensors="pt").pixel_values
    with torch.no_grad():
        decoded = model(pixels).decoded_pixel_values.clamp(0, 1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = next(line["mse"] for line in reversed(lines) if line["split"] == "eval")
    assert found == pytest.approx(float((decoded - pixels).square().mean()), rel=1e-4)
