"""The classifier command as people start it: a folder for each class, the shipped recipe, and slips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

from hf_vq import VQImageClassificationConfig
from hf_vq.commands import train_classifier
from hf_vq.commands.parsing import parse_command_line
from hf_vq.training.arguments import ClassifierTrainingArguments
from hf_vq.training.snapshots import load_snapshots

TINY = (
    "--image_size 16 --base_channels 4 --num_codes 8 --max_steps 2 --train_batch_size 4 --use_cpu --disable_tqdm"
).split()
Main = Callable[[list[str]], None]


@pytest.fixture
def main() -> Iterator[Main]:
    """The command's main function, in this process."""
    yield train_classifier.main
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of cats and six of dogs."""
    generator = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "images" / ("cats", "dogs")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def test_a_folder_becomes_a_classifier(main: Main, folder: Path, tmp_path: Path) -> None:
    """The sub-folders are the classes, and the final folder works in the pipeline; the layer can be chosen."""
    words = [*TINY, "--dataset", str(folder), "--output_dir", str(tmp_path / "out"), "--eval_fraction", "0.25"]
    main([*words, "--quantized_layer", "layers.1.norm", "--monitor_steps", "1"])

    final = tmp_path / "out" / "final"
    model = AutoModelForImageClassification.from_pretrained(final)
    assert model.config.id2label == {0: "cats", 1: "dogs"} and model.config.quantized_layer == "layers.1.norm"
    answers = pipeline("image-classification", model=str(final))(str(folder / "cats" / "00.png"))
    assert {answer["label"] for answer in answers} == {"cats", "dogs"}
    card = (final / "README.md").read_text()
    assert " | images | 25% of train, held out | 3 |" in card and str(folder) not in card
    snapshots = load_snapshots(tmp_path / "out" / "codebook")
    assert [snapshot.step for snapshot in snapshots] == [1, 2] and "gradient_gap" in snapshots[1].metrics


def test_the_recipe_is_whole() -> None:
    """The shipped recipe names fields that exist and makes the network that it describes."""
    args, fields = parse_command_line(
        ClassifierTrainingArguments,
        VQImageClassificationConfig,
        ["--config", "noto_emoji_32_classifier", "--output_dir", "out"],
    )
    config = VQImageClassificationConfig(**fields)
    assert args.dataset == "noto-emoji-32" and config.backbone_config.hidden_sizes == [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backbone_config", "resnet19"], "There is no backbone 'resnet19'"),
        (["--quantized_layer", "9"], "out of range: the backbone's blocks are 0 to 6"),
        (["--num_kodes", "5"], "Did you mean 'model.num_codes'"),
        (["--max_steps", "0"], "max_steps must be at least 1"),
        (["--dataset", "none"], "No data set is named"),
    ],
)
def test_a_slip_ends_with_one_line(main: Main, folder: Path, tmp_path: Path, more: list[str], message: str) -> None:
    """Before anything is written."""
    with pytest.raises(SystemExit, match=message):
        main([*TINY, "--dataset", str(folder), "--output_dir", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()


def test_images_without_classes_are_refused(main: Main, folder: Path, tmp_path: Path) -> None:
    """No sub-folders, no classes; and one class is none."""
    for words in ([str(folder / "cats")], [str(folder), "--streaming", "--eval_split", "test"]):
        with pytest.raises(SystemExit, match="no labels, nothing to learn|unknown split 'test'"):
            main([*TINY, "--output_dir", str(tmp_path / "out"), "--dataset", *words])
