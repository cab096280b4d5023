"""What the output folder of a run holds, where a run begins in it, and what a resumed run takes back."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_vq.data.held_out import HeldOut
from hf_vq.hub.folders import SPLIT_FILE
from hf_vq.training.checkpoints import (
    CheckpointError,
    DamagedCheckpointError,
    checkpoint_folders,
    list_checkpoints,
    newest_good_checkpoint,
    read_state,
    set_aside_later_checkpoints,
    verify_checkpoint,
)
from hf_vq.training.reporting import LOGGING_FOLDER, METRICS_FILE, PICTURES_FOLDER
from hf_vq.training.snapshots import SNAPSHOTS_FOLDER, drop_snapshots
from hf_vq.utils.files import TEMPORARY_PREFIX, discard, write_json
from hf_vq.utils.locks import FolderLock, FolderLockedError
from hf_vq.utils.processes import on_main_process
from hf_vq.utils.text import FINAL_FOLDER

RUN_FILE = "run.json"  # the settings of a run, for one that is stopped before its first checkpoint

logger = logging.getLogger(__name__)


class OutputFolderInUseError(FileExistsError):
    """The output folder already holds another run."""


@contextmanager
def locked(output_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Makes the output folder of a run where it is missing, and keeps other runs out of it; a collective.

    Raises:
        OutputFolderInUseError: Another run works in the folder.
        CheckpointError: The folder can be neither made nor written to.
    """
    lock = FolderLock(output_dir)

    def take() -> None:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except FolderLockedError as owner:
            raise OutputFolderInUseError(f"'{output_dir}' is in use: {owner}. Choose another output_dir.") from None
        except (OSError, ValueError) as reason:  # ValueError: a null byte in the name
            raise CheckpointError(
                f"'{output_dir}' cannot be the folder of a run: {reason}. Choose another output_dir."
            ) from reason

    on_main_process(take, accelerator)
    try:
        yield
    finally:
        lock.release()


def holds_run(output_dir: Path) -> bool:
    """Whether a folder holds the results of a run, finished or not."""
    return bool(checkpoint_folders(output_dir)) or any(
        (output_dir / name).exists() for name in (METRICS_FILE, FINAL_FOLDER)
    )


def clear_run(output_dir: Path) -> None:
    """Deletes the results of a run, and nothing else, from a folder."""
    folders = (FINAL_FOLDER, PICTURES_FOLDER, SNAPSHOTS_FOLDER, LOGGING_FOLDER)
    doomed = []
    names = (*folders, METRICS_FILE, RUN_FILE, SPLIT_FILE)
    for path in [*(output_dir / name for name in names), *checkpoint_folders(output_dir)]:
        if path.exists():
            # Renamed first: a kill during the removal must not leave half a folder under a checkpoint's name.
            doomed.append(output_dir / f"{TEMPORARY_PREFIX}cleared-{path.name}")
            discard(doomed[-1])
            os.replace(path, doomed[-1])
    for path in doomed:
        discard(path)


def write_run(output_dir: Path, settings: dict[str, Any], held_out: HeldOut | None) -> None:
    """Writes down what a run is told, before its first checkpoint, and which images it holds out.

    Raises:
        CheckpointError: The folder cannot be written to.
    """
    try:
        write_json(settings, output_dir / RUN_FILE)
        if held_out is not None:
            held_out.write(output_dir, names=True)
    except OSError as reason:
        raise CheckpointError(f"Could not write '{output_dir / RUN_FILE}': {reason}.") from reason


def take_back_later_steps(output_dir: Path, step: int) -> None:
    """Takes back what was written after `step`, by a stretch of the run that a resumed run goes through again.

    Snapshots of the codebook are dropped, whether or not the resumed run has a monitor: without one, a record would
    go on with steps that never were. The reporter drops its own lines when it starts.
    """
    drop_snapshots(output_dir / SNAPSHOTS_FOLDER, after=step)
    for folder in set_aside_later_checkpoints(output_dir, step):
        logger.warning("A checkpoint after step %d was set aside as '%s'.", step, folder)


def require_free(output_dir: Path, overwrite: bool) -> None:
    """Refuses a folder that holds a run, for a new run that may not delete it.

    Raises:
        OutputFolderInUseError: It holds one.
    """
    if holds_run(output_dir) and not overwrite:
        raise OutputFolderInUseError(
            f"'{output_dir}' already holds a run. Continue it with resume_from_checkpoint=latest, choose another "
            "output_dir, or delete it with overwrite_output_dir."
        )


def find_settings(output_dir: Path, resume_from: str) -> tuple[Path, dict[str, Any]] | None:
    """What a run that is to be continued says of itself; only its settings are read, and no weights.

    Args:
        output_dir: The folder of the run.
        resume_from: "latest", or the path of a checkpoint.

    Returns:
        The checkpoint, or the run's folder if it has none yet, and its settings. None if there is no run.

    Raises:
        CheckpointError: There is no such checkpoint, or its settings cannot be read.
    """
    if resume_from != "latest":
        return Path(resume_from), read_state(require_checkpoint(output_dir, resume_from))
    for folder in reversed(list_checkpoints(output_dir)):
        try:
            return folder, read_state(folder)
        except DamagedCheckpointError:
            continue  # `choose_start` tells of it
    try:
        return output_dir, {**json.loads((output_dir / RUN_FILE).read_text(encoding="utf-8")), "step": 0}
    except (OSError, ValueError):
        return None


def require_checkpoint(output_dir: Path, resume_from: str) -> Path:
    """The folder of a checkpoint that is to be continued from.

    Raises:
        CheckpointError: There is none.
    """
    folder = Path(resume_from)
    if not folder.is_dir():
        known = ", ".join(str(found) for found in list_checkpoints(output_dir)) or "none"
        raise CheckpointError(f"The checkpoint '{folder}' does not exist. Checkpoints of this run: {known}.")
    return folder


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
        require_free(output_dir, overwrite)
        if holds_run(output_dir):
            clear_run(output_dir)
        return None
    if resume_from != "latest":
        folder = require_checkpoint(output_dir, resume_from)
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
    # Killed before its first checkpoint: the same command starts it again.
    logger.warning("There is no checkpoint in '%s' yet: the run begins at step 0.", output_dir)
    return None


def _warn_if_unverified(folder: Path, verified: bool) -> None:
    if not verified:
        logger.warning("'%s' has no hashes, as version 0.1.0 wrote it: its content was not verified.", folder)
