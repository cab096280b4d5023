"""The tokenizing command as people start it: the sample, two processes that are killed, slips on the command line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import torch
from accelerate.state import PartialState

from hf_vq import VQConfig, VQImageProcessor, VQModel, load_token_dataset
from hf_vq.commands import tokenize_dataset

# Views that do not fill batches, batches that do not fill shards.
WORDS = (
    "--dataset noto-emoji-32 --splits test --images_per_shard 5 --batch_size 8 --num_crops 1 --flip --use_cpu"
).split()
SHARDS = 42  # of 206 images


@pytest.fixture
def main() -> Iterator[Callable[[list[str]], None]]:
    """The command's main function, in this process, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tokenize_dataset.main
    torch.set_num_threads(threads)
    PartialState._reset_state()


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """The folder of a tiny tokenizer."""
    torch.manual_seed(0)
    config = VQConfig(
        architecture="sqvae", image_size=16, base_channels=8, num_res_blocks=1, embed_dim=4, num_codes=64
    )
    model = VQModel(config)
    model.save_pretrained(tmp_path / "tokenizer")
    VQImageProcessor(image_size=16).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def start(tokenizer: str, output_dir: Path, *words: str, script: Path | None = None) -> subprocess.Popen[str]:
    """Starts the command, or a script with its arguments, in two processes on CPUs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    launcher = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", *launcher, "--main_process_port", port),
            *([str(script)] if script else ["-m", "hf_vq.commands.tokenize_dataset"]),
            *("--tokenizer", tokenizer, "--output_dir", str(output_dir), *WORDS, *words),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for the end of a run; what it wrote."""
    try:
        errors = process.communicate(timeout=240)[1]
    finally:
        kill(process)
    assert process.returncode == 0, errors[-3000:]
    return errors


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL for the launcher and both processes, which it has put in sessions of their own."""
    if process.poll() is None:
        both = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in both:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(both, timeout=30)
        process.wait()


def contents(folder: Path) -> dict[str, bytes]:
    """Name and bytes of each file, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_killed_processes_end_with_the_files_of_one(
    main: Callable[[list[str]], None], tokenizer: str, tmp_path: Path
) -> None:
    """SIGKILL for two processes amid the shards, then a second start: the bytes of one undisturbed process."""
    killed = tmp_path / "killed"
    process = start(tokenizer, killed)
    try:
        deadline = time.monotonic() + 240
        while len(list(killed.glob("test-*.parquet"))) < 5:
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline, "the run does not get on"
            time.sleep(0.002)
    finally:
        kill(process)
    missing = [number for number in range(SHARDS) if not (killed / f"test-{number:05d}.parquet").exists()]
    assert 0 < len(missing) <= SHARDS - 5, "the kill came too late to test anything"
    (killed / ".tmp-0123abcd").write_bytes(b"half a fi")  # as a kill amid the writing leaves it

    log = finish(start(tokenizer, killed, "--streaming"))  # where every process reads rows of its own
    main(["--tokenizer", tokenizer, "--output_dir", str(tmp_path / "straight"), *WORDS, "--disable_tqdm"])

    assert "tokenizing in 2 processes on cpu" in log, log
    assert len(list(killed.glob("*.parquet"))) == SHARDS
    assert contents(killed) == contents(tmp_path / "straight")
    assert len(load_token_dataset(killed, "test", tokenizer=tokenizer)) == 4 * 206


LATE = """
import runpy
import time

from accelerate import PartialState

from hf_vq.data import tokenize as tokenization

look = tokenization.go_on


def look_late(folder, *rest):
    record = look(folder, *rest)
    deadline = time.monotonic() + 5
    while not PartialState().is_main_process and time.monotonic() < deadline:
        if (folder / "test-00000.parquet").exists():
            break
        time.sleep(0.01)
    return record


tokenization.go_on = look_late
runpy.run_module("hf_vq.commands.tokenize_dataset", run_name="__main__")
"""


def test_a_process_that_looks_late_goes_on_with_the_others(
    main: Callable[[list[str]], None], tokenizer: str, tmp_path: Path
) -> None:
    """A finished split has lost a shard, and one process looks when another has written it: both must end."""
    tokens = tmp_path / "tokens"
    main(["--tokenizer", tokenizer, "--output_dir", str(tokens), *WORDS, "--images_per_shard", "100"])
    before = contents(tokens)
    (tokens / "test-00000.parquet").unlink()
    (tmp_path / "late.py").write_text(LATE)

    finish(start(tokenizer, tokens, "--images_per_shard", "100", script=tmp_path / "late.py"))
    assert contents(tokens) == before


def test_the_sample_is_tokenized_with_both_splits(
    main: Callable[[list[str]], None],
    tokenizer: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every split becomes labeled tokens; the bar shows images/s, and after a restart counts what is left."""
    monkeypatch.setattr("hf_vq.utils.progress.can_draw_bars", lambda: True)  # as on a terminal
    words = ["--tokenizer", tokenizer, "--dataset", "noto-emoji-32", "--output_dir", str(tmp_path / "tokens")]
    main([*words, "--images_per_shard", "500"])
    first = capsys.readouterr().err
    (tmp_path / "tokens" / "train-00003.parquet").unlink()
    main([*words, "--images_per_shard", "500"])

    assert "206/206" in first and "1700/1700" in first and "images/s" in first
    assert "200/200" in capsys.readouterr().err
    test, train = (load_token_dataset(tmp_path / "tokens", split) for split in ("test", "train"))
    assert (len(test), len(train)) == (206, 1700)
    assert train.features["label"].names[1] == "animals_nature"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images_per_shart", "5"], "Did you mean 'images_per_shard'"),
        (["--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["--crop_scale", "1.5"], r"crop_scale must be in \(0, 1\], got 1.5"),
        (["--splits", "train[:10]"], "whole splits are tokenized"),
    ],
)
def test_a_slip_on_the_command_line_ends_with_one_line(
    main: Callable[[list[str]], None], words: list[str], message: str
) -> None:
    """Unknown fields and impossible values end the script with a message, not a traceback."""
    with pytest.raises(SystemExit, match=message):
        main(["--tokenizer", "t", "--dataset", "noto-emoji-32", "--output_dir", "out", *words])


def test_a_missing_tokenizer_or_data_set_is_named(
    main: Callable[[list[str]], None], tokenizer: str, tmp_path: Path
) -> None:
    """Nothing is written when there is nothing to tokenize, or nothing to do it with."""
    output = ["--output_dir", str(tmp_path / "out"), "--use_cpu"]

    with pytest.raises(SystemExit, match="error: no tokenizer in '/nowhere/final'"):
        main(["--tokenizer", "/nowhere/final", "--dataset", "noto-emoji-32", *output])
    with pytest.raises(SystemExit, match="error: no images found in '/nowhere/images'"):
        main(["--tokenizer", tokenizer, "--dataset", "/nowhere/images", *output])
    assert not (tmp_path / "out").exists()
