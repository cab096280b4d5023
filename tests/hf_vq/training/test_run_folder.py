"""An output folder belongs to one run at a time, and deleting a run leaves nothing broken behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_vq.training import run_folder
from hf_vq.training.checkpoints import CheckpointError, list_checkpoints, verify_checkpoint
from hf_vq.training.run_folder import OutputFolderInUseError
from hf_vq.utils.locks import LOCK_FILE

MakeTrainer = Callable[..., Any]


@pytest.mark.parametrize("fields", [{}, {"resume_from_checkpoint": "latest"}, {"overwrite_output_dir": True}])
def test_a_second_run_in_the_folder_is_refused(
    fields: dict[str, Any], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Whatever it was asked to do, it reads and changes nothing while the first one runs, and names it."""
    first = make_trainer(max_steps=4, save_steps=2)
    train_step = first.train_step
    refused: list[int] = []

    def try_a_second_one(batches: Any) -> Any:
        if first.step == 3:
            before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
            with pytest.raises(OutputFolderInUseError, match=f"is in use: process {os.getpid()} on host"):
                make_trainer(max_steps=4, save_steps=2, **fields).train()
            assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
            refused.append(first.step)
        return train_step(batches)

    first.train_step = try_a_second_one
    first.train()
    assert refused == [3]
    assert not (tmp_path / "out" / LOCK_FILE).exists()
    assert verify_checkpoint(tmp_path / "out" / "checkpoint-4")


def test_a_kill_while_a_run_is_deleted_leaves_no_broken_checkpoint(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first file that is removed, no folder has a checkpoint's name any more."""
    make_trainer(max_steps=4, save_steps=2).train()

    def killed(path: Path) -> None:
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "discard", killed)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(max_steps=4, overwrite_output_dir=True).train()
    assert not list_checkpoints(tmp_path / "out")
    monkeypatch.undo()
    make_trainer(max_steps=2, resume_from_checkpoint="latest").train()
    assert not list((tmp_path / "out").glob(".tmp-*"))


def test_a_folder_that_cannot_be_is_a_sentence(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """A file in its place, or a name that is none, is an error of the run, not of the system."""
    (tmp_path / "file").write_text("mine")
    for name in ("file", "file/below", "a\0b"):
        with pytest.raises(CheckpointError, match="cannot be the folder of a run"):
            make_trainer(name).train()
    assert (tmp_path / "file").read_text() == "mine"
