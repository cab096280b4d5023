"""The folder of a token data set: one run at a time, and a sentence where it cannot be written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from hf_vq.commands.tokenize_dataset import main
from hf_vq.data.tokenize import tokenize_dataset
from hf_vq.utils.locks import LOCK_FILE, FolderLock

from ...tiny_tokens import arguments, contents

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_runs_do_not_write_one_folder(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """A second run is refused while the first is alive, and before it reads anything; the lock leaves with the run."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    first = FolderLock(folder)
    first.acquire()
    with pytest.raises(
        FileExistsError, match=rf"tokens' is in use: process {os.getpid()} on host .*another output_dir"
    ):
        tokenize_dataset(arguments("no/tokenizer", "no/images", folder))
    assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
    first.release()

    tokenize_dataset(arguments(tokenizer, images, folder))
    assert LOCK_FILE not in contents(folder)


@pytest.mark.parametrize("name", ["a_file", "a_file/below", "nothing\0here", "x" * 300, "/proc/nothing"])
def test_a_folder_that_cannot_be_is_told_in_a_sentence(name: str, tmp_path: Path) -> None:
    """The command ends with what is wrong and what to do, before it reads anything."""
    (tmp_path / "a_file").write_text("")
    with pytest.raises(
        SystemExit, match=r"^error: '.*' cannot be the folder of a token data set: .*another output_dir"
    ):
        main(["--tokenizer", "t", "--dataset", "d", "--use_cpu", "--output_dir", str(tmp_path / name)])


def test_a_run_that_wrote_nothing_leaves_no_folder(tmp_path: Path) -> None:
    """A misspelled tokenizer is no reason for an empty folder."""
    with pytest.raises(SystemExit, match="^error: "):
        main(["--tokenizer", "./none", "--dataset", "d", "--use_cpu", "--output_dir", str(tmp_path / "tokens")])
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(("left", "written"), [(4_096, "manifest.json"), (8_192, "train-00000.parquet")])
def test_a_full_disk_is_told_in_a_sentence(
    left: int, written: str, small_disk: Path, images: Path, tokenizer: str
) -> None:
    """It names the file and what is left; with more space the same command finishes."""
    folder = small_disk / "tokens"
    folder.mkdir()
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - left))
    command = ["--tokenizer", tokenizer, "--dataset", str(images), "--output_dir", str(folder)]
    command += ["--images_per_shard", "4", "--batch_size", "3", "--use_cpu", "--disable_tqdm"]
    with pytest.raises(
        SystemExit, match=rf"^error: Could not write '.*{written}'.*No space left.*MiB left.*same command"
    ):
        main(command)
    assert written not in contents(folder)

    filler.unlink()
    main(command)
    assert json.loads((folder / "manifest.json").read_text())["splits"]["train"]["num_rows"] == 11
