"""What the output folder of a run holds, where a run begins in it, and what a resumed run takes back."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from hf_vq.training.checkpoints import (
    CheckpointError,
    checkpoint_folders,
    list_checkpoints,
    newest_good_checkpoint,
    set_aside_later_checkpoints,
    verify_checkpoint,
)
from hf_vq.training.reporting import LOGGING_FOLDER, METRICS_FILE, PICTURES_FOLDER
from hf_vq.training.snapshots import SNAPSHOTS_FOLDER, drop_snapshots

FINAL_FOLDER = "final"

logger = logging.getLogger(__name__)


class OutputFolderInUseError(FileExistsError):
    """The output folder already holds another run."""


def holds_run(output_dir: Path) -> bool:
    """Whether a folder holds the results of a run, finished or not."""
    return bool(checkpoint_folders(output_dir)) or any(
        (output_dir / name).exists() for name in (METRICS_FILE, FINAL_FOLDER)
    )


def clear_run(output_dir: Path) -> None:
    """Deletes the results of a run, and nothing else, from a folder."""
    folders = [output_dir / name for name in (FINAL_FOLDER, PICTURES_FOLDER, SNAPSHOTS_FOLDER, LOGGING_FOLDER)]
    for folder in checkpoint_folders(output_dir) + folders:
        shutil.rmtree(folder, ignore_errors=True)
    (output_dir / METRICS_FILE).unlink(missing_ok=True)


def take_back_later_steps(output_dir: Path, step: int) -> list[Path]:
    """Takes back what was written after `step`, by a stretch of the run that a resumed run goes through again.

    Snapshots of the codebook are dropped, whether or not the resumed run has a monitor: without one, a record would
    go on with steps that never were. The reporter drops its own lines when it starts.

    Returns:
        Checkpoints that were set aside, under their new names.
    """
    drop_snapshots(output_dir / SNAPSHOTS_FOLDER, after=step)
    return set_aside_later_checkpoints(output_dir, step)


def choose_start(output_dir: Path, resume_from: str | None, overwrite: bool) -> Path | None:
    """Decides where a run begins, and guards what the output folder holds.

    "latest" is the newest checkpoint that is whole; damaged ones after it are named in a warning.

    Args:
        output_dir: The folder of the run.
        resume_from: "latest", the path of a checkpoint, or None for a new run.
        overwrite: Whether a new run may delete the run in the folder.

    Returns:
        The checkpoint to continue from; None to begin at step 0.

    Raises:
        OutputFolderInUseError: The folder holds another run, and neither was asked for.
        CheckpointError: The checkpoint to continue from does not exist, or is damaged.
    """
    if resume_from is None:
        if holds_run(output_dir):
            if not overwrite:
                raise OutputFolderInUseError(
                    f"'{output_dir}' already holds a run. Continue it with resume_from_checkpoint=latest, choose "
                    "another output_dir, or delete it with overwrite_output_dir."
                )
            clear_run(output_dir)
        return None
    if resume_from != "latest":
        folder = Path(resume_from)
        if not folder.is_dir():
            known = ", ".join(str(found) for found in list_checkpoints(output_dir)) or "none"
            raise CheckpointError(f"The checkpoint '{folder}' does not exist. Checkpoints of this run: {known}.")
        _warn_if_unverified(folder, verify_checkpoint(folder))
        if folder.resolve().parent != output_dir.resolve() and holds_run(output_dir):
            raise OutputFolderInUseError(
                f"'{output_dir}' already holds a run, and '{folder}' is not a checkpoint of it. "
                "Choose another output_dir."
            )
        return folder
    newest, verified, problems = newest_good_checkpoint(output_dir)
    if newest is not None:
        for problem in problems:
            logger.warning("%s The run goes on from '%s'.", problem, newest)
        _warn_if_unverified(newest, verified)
        return newest
    if (output_dir / FINAL_FOLDER).exists():
        raise CheckpointError(
            f"'{output_dir}' holds a finished run but no checkpoint to continue from. Choose another output_dir, or "
            "delete it with overwrite_output_dir."
        )
    return None  # killed before its first checkpoint: the same command starts it again


def _warn_if_unverified(folder: Path, verified: bool) -> None:
    if not verified:
        logger.warning("'%s' has no hashes, as version 0.1.0 wrote it: its content was not verified.", folder)
