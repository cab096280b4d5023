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


@pytest.mark.parametrize("line", ["not JSON", "[1]", "{}", '{"step": "1"}'])
def test_a_malformed_line_of_metrics_is_named(line: str, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Nobody's numbers are thrown away, but for a last line that a kill cut off."""
    make_trainer(max_steps=4, save_steps=2).train()
    file = tmp_path / "out" / "metrics.jsonl"
    good = file.read_text()
    file.write_text(f"{line}\n{good}")
    with pytest.raises(CheckpointError, match=r"Line 1 of .*metrics.jsonl' is not a record"):
        make_trainer(max_steps=4, save_steps=2, resume_from_checkpoint="latest").train()
    assert file.read_text() == f"{line}\n{good}"

    file.write_text(good + '{"step": 4, "spl')
    make_trainer(max_steps=4, save_steps=2, resume_from_checkpoint="latest").train()
    assert file.read_text() == good


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval"])
def test_a_report_that_cannot_be_written_is_a_sentence(name: str, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """The run stops, and its last checkpoint goes on when there is room again."""
    trainer = make_trainer(max_steps=4, save_steps=2, logging_steps=3, eval_steps=3)
    train_step = trainer.train_step

    def block(batches: Any) -> Any:
        if trainer.step == 2:
            path = tmp_path / "out" / name
            path.mkdir() if name == "metrics.jsonl" else path.write_text("in the way")
        return train_step(batches)

    trainer.train_step = block
    with pytest.raises(CheckpointError, match=f"Could not write '.*{name}': "):
        trainer.train()
    assert [folder.name for folder in list_checkpoints(tmp_path / "out")] == ["checkpoint-2"]
