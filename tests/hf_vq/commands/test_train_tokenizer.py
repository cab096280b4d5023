"""The training command as people start it: their own images, good and bad, and their slips on the command line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from transformers import AutoModel

from hf_vq.commands import train_tokenizer

TINY = (
    "--architecture sqvae --image_size 16 --base_channels 8 --num_res_blocks 1 --embed_dim 4 --num_codes 8 "
    "--max_steps 2 --train_batch_size 4 --use_cpu --disable_tqdm"
).split()


@pytest.fixture
def main() -> Iterator[Callable[[list[str]], None]]:
    """The command's main function, in this process."""
    yield train_tokenizer.main
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of sixteen photographs and drawings."""
    path = tmp_path / "images"
    path.mkdir()
    generator = np.random.default_rng(0)
    for number in range(16):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{number:02}.png")
    return path


def test_it_trains_on_a_folder_and_holds_images_out(
    main: Callable[[list[str]], None], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder without splits becomes a model that loads, measured on a part held out; the end tells where it is."""
    with caplog.at_level(logging.INFO):
        main([*TINY, "--dataset", str(folder), "--output_dir", str(tmp_path / "out"), "--eval_fraction", "0.25"])

    final = tmp_path / "out" / "final"
    assert caplog.messages[-1] == f"The finished model is in {final}"
    assert AutoModel.from_pretrained(final).config.num_codes == 8
    assert " | images | 25% of train, held out | 4 | " in (final / "README.md").read_text()


def test_odd_images_are_converted_and_broken_ones_counted(
    main: Callable[[list[str]], None], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gray, transparent, palette, 16-bit and small images train; broken files are skipped, counted and named."""
    pixels = np.arange(20 * 20).reshape(20, 20)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "gray.png")
    Image.fromarray((pixels * 100).astype(np.uint16)).save(folder / "deep.png")
    Image.open(folder / "00.png").convert("RGBA").save(folder / "transparent.png")
    Image.open(folder / "00.png").convert("P").save(folder / "palette.png")
    Image.open(folder / "00.png").resize((5, 7)).save(folder / "small.png")
    (folder / "truncated.png").write_bytes((folder / "00.png").read_bytes()[:100])
    (folder / "text.png").write_text("not an image")

    (folder / "train").mkdir()
    for file in folder.glob("*.*"):
        file.rename(folder / "train" / file.name)
    (folder / "test").mkdir()
    for name in ("02.png", "text.png", "03.png"):
        (folder / "test" / name).write_bytes((folder / "train" / name).read_bytes())
    words = [*TINY, "--dataset", str(folder), "--output_dir", str(tmp_path / "out"), "--eval_split", "test"]
    with caplog.at_level(logging.WARNING):
        main([*words, "--max_steps", "6"])

    assert "skipping 2 of 23 images" in caplog.text
    assert "truncated.png" in caplog.text and "text.png" in caplog.text
    assert AutoModel.from_pretrained(tmp_path / "out" / "final").config.num_codes == 8
    card = (tmp_path / "out" / "final" / "README.md").read_text()
    assert "| training images | 21 |" in card and "| images | test | 2 |" in card and "# out\n" in card


def test_strict_stops_at_a_broken_image(main: Callable[[list[str]], None], folder: Path, tmp_path: Path) -> None:
    """With --strict a file that is no image ends the run before it begins, and is named."""
    (folder / "text.png").write_text("not an image")

    with pytest.raises(SystemExit, match="error: .*text.png"):
        main([*TINY, "--dataset", str(folder), "--output_dir", str(tmp_path / "out"), "--strict"])
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_is_an_error(main: Callable[[list[str]], None], folder: Path, tmp_path: Path) -> None:
    """No images are told of with the place that was searched; no such split and no data set with what to write."""
    (tmp_path / "empty").mkdir()

    with pytest.raises(SystemExit, match="error: no images found in .*empty"):
        main([*TINY, "--dataset", str(tmp_path / "empty"), "--output_dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="unknown split 'test' of .*; with --eval_split auto, a part of the train"):
        main([*TINY, "--dataset", str(folder), "--output_dir", str(tmp_path / "out"), "--eval_split", "test"])
    with pytest.raises(SystemExit, match="error: No data set is named"):
        main([*TINY, "--output_dir", str(tmp_path / "out")])


def test_a_folder_with_another_run_is_told_of_in_a_line(
    main: Callable[[list[str]], None], folder: Path, tmp_path: Path
) -> None:
    """And its files stay; so with a checkpoint of other settings, named line by line."""
    words = [*TINY, "--dataset", str(folder), "--output_dir", str(tmp_path / "out"), "--eval_split", "none"]
    main([*words, "--max_steps", "2"])
    with pytest.raises(SystemExit, match=r"error: '.*out' already holds a run"):
        main([*words, "--max_steps", "2"])
    with pytest.raises(SystemExit, match=r"error: .*belongs to a run with other settings:\n  learning_rate"):
        main([*words, "--max_steps", "2", "--learning_rate", "0.5", "--resume_from_checkpoint", "latest"])
    assert AutoModel.from_pretrained(tmp_path / "out" / "final").config.num_codes == 8


def test_it_trains_and_resumes_on_a_stream(
    main: Callable[[list[str]], None], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """--streaming trains without a length, says that nothing is held out, and goes on from a checkpoint."""
    words = [*TINY, "--dataset", str(folder), "--output_dir", str(tmp_path / "out"), "--streaming"]
    words += ["--lr_scheduler", "constant", "--save_steps", "1"]
    with caplog.at_level(logging.WARNING):
        main([*words, "--max_steps", "5"])
    main([*words, "--max_steps", "7", "--resume_from_checkpoint", "latest"])

    assert "Nothing is held out" in caplog.text
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-7"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_kodes", "5"], "Did you mean 'model.num_codes'"),
        (["--beta", "1.5"], r"`beta` must be in \[0, 1\], got 1.5"),
        (["--num_codes", "8", "--affine_groups", "3"], "`affine_groups` must divide"),
        (["--max_steps", "-1"], "max_steps must be at least 1"),
    ],
)
def test_a_slip_on_the_command_line_ends_with_one_line(
    main: Callable[[list[str]], None], words: list[str], message: str
) -> None:
    """Unknown fields and impossible values of trainer and model end the script with a message, not a traceback."""
    with pytest.raises(SystemExit, match=message):
        main([*TINY, "--output_dir", "out", *words])


def test_help_names_the_fields_of_trainer_and_model(
    main: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """--help shows how to start it, every training argument and the model's fields."""
    with pytest.raises(SystemExit):
        main(["--help"])

    text = capsys.readouterr().out
    for part in ("accelerate launch", "--learning_rate", "--resume_from_checkpoint", "commitment_weight", "num_codes"):
        assert part in text
    assert "Peak learning rate of AdamW. (default: 0.0003)" in " ".join(text.split())
