"""Parts of a run's state that are not tensors of a model: random numbers, and what the output folder already holds."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_vq.training.checkpoints import CheckpointError, list_checkpoints, read_state

FINAL_FOLDER = "final"
METRICS_FILE = "metrics.jsonl"
PICTURES_FOLDER = "eval"
MONITOR_FOLDER = "codebook"
LOGGING_FOLDER = "logs"


class OutputFolderInUseError(FileExistsError):
    """The output folder already holds another run."""


def random_state() -> dict[str, Any]:
    """The state of all random number generators of this process, as plain containers of tensors and numbers."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    words = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(kind), words, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restores what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Keeps random numbers that are drawn inside from changing what comes after."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def holds_run(output_dir: Path) -> bool:
    """Whether a folder holds the results of a run, finished or not."""
    return bool(list_checkpoints(output_dir)) or any(
        (output_dir / name).exists() for name in (METRICS_FILE, FINAL_FOLDER)
    )


def clear_run(output_dir: Path) -> None:
    """Deletes the results of a run, and nothing else, from a folder."""
    for folder in list_checkpoints(output_dir) + [
        output_dir / name for name in (FINAL_FOLDER, PICTURES_FOLDER, MONITOR_FOLDER, LOGGING_FOLDER)
    ]:
        shutil.rmtree(folder, ignore_errors=True)
    (output_dir / METRICS_FILE).unlink(missing_ok=True)


def choose_start(output_dir: Path, resume_from: str | None, overwrite: bool) -> Path | None:
    """Decides where a run begins, and guards what the output folder holds.

    Args:
        output_dir: The folder of the run.
        resume_from: "latest", the path of a checkpoint, or None for a new run.
        overwrite: Whether a new run may delete the run in the folder.

    Returns:
        The checkpoint to continue from; None to begin at step 0.

    Raises:
        OutputFolderInUseError: The folder holds another run, and neither was asked for.
        CheckpointError: The checkpoint to continue from does not exist.
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
        read_state(folder)
        if folder.resolve().parent != output_dir.resolve() and holds_run(output_dir):
            raise OutputFolderInUseError(
                f"'{output_dir}' already holds a run, and '{folder}' is not a checkpoint of it. "
                "Choose another output_dir."
            )
        return folder
    checkpoints = list_checkpoints(output_dir)
    if checkpoints:
        return checkpoints[-1]
    if (output_dir / FINAL_FOLDER).exists():
        raise CheckpointError(
            f"'{output_dir}' holds a finished run but no checkpoint to continue from. Choose another output_dir, or "
            "delete it with overwrite_output_dir."
        )
    return None  # killed before its first checkpoint: the same command starts it again


def differing_settings(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """One line for each setting in which a checkpoint and this run differ."""
    return [
        f"{prefix}{name}: {saved.get(name)!r} in the checkpoint, {current.get(name)!r} now"
        for name in sorted(saved.keys() | current.keys())
        if saved.get(name) != current.get(name)
    ]


def batch_norm_statistics(*networks: nn.Module) -> list[torch.Tensor]:
    """The running means and variances in some networks."""
    return [
        statistic
        for network in networks
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]
