"""Checkpoint folders: all or nothing, the newest complete one, rotation, and a disk that is full."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_vq.training import checkpoints as ckpt
from hf_vq.training.checkpoints import CheckpointError
from hf_vq.utils.files import TEMPORARY_PREFIX, atomic_folder, write_json


def make_checkpoint(output_dir: Path, step: int) -> Path:
    """Writes a minimal complete checkpoint."""
    folder = output_dir / f"checkpoint-{step}"
    with atomic_folder(folder) as temporary:
        write_json({"step": step}, temporary / ckpt.STATE_FILE)
    return folder


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    """An error while writing removes the temporary folder and keeps what had the name before."""
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "old").write_text("old")

    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path / "final") as temporary:
        (temporary / "new").write_text("new")
        raise OSError("disk full")

    assert names(tmp_path) == ["final"]
    assert names(tmp_path / "final") == ["old"]


def test_a_folder_is_replaced_in_one_go(tmp_path: Path) -> None:
    """Nothing of the old folder survives under the new one's name."""
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "final") as temporary:
            (temporary / content).write_text(content)

    assert names(tmp_path) == ["final"]
    assert names(tmp_path / "final") == ["new"]


def test_latest_is_the_highest_complete_step(tmp_path: Path) -> None:
    """Steps are compared as numbers, and folders without a state file do not count."""
    for step in (9, 100, 20):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-best").mkdir()

    assert [folder.name for folder in ckpt.list_checkpoints(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-20",
        "checkpoint-100",
    ]


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    """Only as many as the limit stay; no limit keeps all."""
    for step in (1, 2, 10, 11):
        make_checkpoint(tmp_path, step)

    ckpt.rotate_checkpoints(tmp_path, None)
    assert len(names(tmp_path)) == 4
    ckpt.rotate_checkpoints(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    """A process killed while it writes leaves only a temporary folder, which the next start removes."""
    make_checkpoint(tmp_path, 1)
    child = os.fork()
    if child == 0:
        with atomic_folder(tmp_path / "checkpoint-2") as folder:
            write_json({}, folder / ckpt.STATE_FILE)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)

    assert names(tmp_path) == [".tmp-checkpoint-2", "checkpoint-1"]
    assert [folder.name for folder in ckpt.list_checkpoints(tmp_path)] == ["checkpoint-1"]
    ckpt.remove_stale_folders(tmp_path)
    assert names(tmp_path) == ["checkpoint-1"]


def test_later_checkpoints_are_set_aside_not_deleted(tmp_path: Path) -> None:
    """Going on from an earlier step keeps the later checkpoints under another name."""
    for step in (1, 2, 3):
        make_checkpoint(tmp_path, step)
    (tmp_path / "superseded-checkpoint-3").mkdir()

    ckpt.set_aside_later_checkpoints(tmp_path, 1)

    assert names(tmp_path) == [
        "checkpoint-1",
        "superseded-checkpoint-2",
        "superseded-checkpoint-3",
        "superseded-checkpoint-3-2",
    ]


def test_state_files_cannot_run_code(tmp_path: Path) -> None:
    """Loading a state refuses pickled objects that are not tensors in plain containers."""

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save({"optimizer": Evil()}, tmp_path / "state.pt")

    with pytest.raises(Exception, match="(?i)weights_only|unsupported"):
        ckpt.load_object(tmp_path / "state.pt")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_keeps_the_last_checkpoint(small_disk: Path, make_trainer: Callable[..., Any]) -> None:
    """On a really full disk the run stops with a clear error, and the checkpoint before is whole and goes on."""
    output_dir = small_disk / "run"
    settings = {"output_dir": str(output_dir), "max_steps": 4, "save_steps": 2}
    trainer = make_trainer(**settings)
    trainer.eval_dataset = None
    train_step = trainer.train_step

    def fill_the_disk(batches: Any) -> Any:
        if trainer.step == 3:
            (small_disk / "filler").write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 40_000))
        return train_step(batches)

    trainer.train_step = fill_the_disk
    with pytest.raises(CheckpointError, match=r"(?s)checkpoint-4.*MiB left.*last good checkpoint is.*checkpoint-2"):
        trainer.train()

    assert [name for name in names(output_dir) if "checkpoint" in name] == ["checkpoint-2"]
    (small_disk / "filler").unlink()
    resumed = make_trainer(**settings, resume_from_checkpoint="latest")
    resumed.train()
    assert resumed.step == 4


@pytest.mark.parametrize("failing", ["save_weights", "save_object", "write_json"])
def test_no_part_of_a_failed_checkpoint_survives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_trainer: Callable[..., Any], failing: str
) -> None:
    """Whichever file the disk has no room for, the run stops and only the last good checkpoint is there."""
    trainer = make_trainer(max_steps=4, save_steps=2, eval_steps=0)
    write = getattr(ckpt, failing)

    def no_room(value: Any, path: Path) -> None:
        write(value, path)
        if trainer.step == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(ckpt, failing, no_room)
    with pytest.raises(CheckpointError, match=r"(?s)No space left on device.*last good checkpoint is.*checkpoint-2"):
        trainer.train()

    assert [name for name in names(tmp_path / "out") if "checkpoint" in name] == ["checkpoint-2"]
    assert not (tmp_path / "out" / "final").exists()


def test_a_folder_that_was_being_replaced_is_put_back(tmp_path: Path) -> None:
    """Killed between moving the old folder away and the new one in, a run finds the old one again."""
    moved = tmp_path / f"{TEMPORARY_PREFIX}replaced-final"
    moved.mkdir()
    (moved / "weights").write_text("old")

    ckpt.remove_stale_folders(tmp_path)

    assert (tmp_path / "final" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
