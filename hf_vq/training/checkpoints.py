"""Checkpoint folders that are either complete or not there: written aside, flushed, then renamed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hf_vq.utils.files import TEMPORARY_PREFIX, discard, discard_leftovers

CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d+)")
STATE_FILE = "trainer_state.json"
WEIGHTS_FILE = "model.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, found, or used for this run."""


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [
        folder
        for folder in output_dir.iterdir()
        if CHECKPOINT_PATTERN.fullmatch(folder.name) and (folder / STATE_FILE).is_file()
    ]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """The optimizer step that a folder named `checkpoint-N` stands for."""
    match = CHECKPOINT_PATTERN.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(f"'{folder}' is not named checkpoint-N.")
    return int(match.group(1))


def rotate_checkpoints(output_dir: Path, limit: int | None) -> None:
    """Removes the oldest checkpoints beyond `limit`; called when the newest one is complete."""
    if limit is None:
        return
    for folder in list_checkpoints(output_dir)[:-limit]:
        # Renamed first: a kill during the removal must not leave half a folder under a checkpoint's name.
        doomed = output_dir / f"{TEMPORARY_PREFIX}rotated-{folder.name}"
        discard(doomed)
        os.replace(folder, doomed)
        discard(doomed)


def remove_stale_folders(output_dir: Path) -> None:
    """Removes what a killed process left half written, and puts back what it was about to replace."""
    for replaced in output_dir.glob(f"{TEMPORARY_PREFIX}replaced-*"):
        path = output_dir / replaced.name.removeprefix(f"{TEMPORARY_PREFIX}replaced-")
        if not path.exists():
            os.replace(replaced, path)
    discard_leftovers(output_dir)


def set_aside_later_checkpoints(output_dir: Path, step: int) -> list[Path]:
    """Renames checkpoints after `step`, which a run that goes on from `step` is about to write anew.

    Nothing is deleted, and 'latest' no longer means a future that was given up.

    Returns:
        The new folders, named `superseded-checkpoint-N` (with a number behind it where that exists).
    """
    moved = []
    for folder in list_checkpoints(output_dir):
        if checkpoint_step(folder) <= step:
            continue
        target, count = output_dir / f"superseded-{folder.name}", 1
        while target.exists():
            count += 1
            target = output_dir / f"superseded-{folder.name}-{count}"
        os.replace(folder, target)
        moved.append(target)
    return moved


def save_weights(state_dict: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a state dict as safetensors, in the form that `from_pretrained` reads: of tied weights once."""
    first_names = _first_names(state_dict)
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items() if first_names[name] == name
    }
    save_file(tensors, path, metadata={"format": "pt"})


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Puts what `save_weights` wrote of a network into it."""
    weights = load_file(path)
    first_names = _first_names(network.state_dict())
    network.load_state_dict(
        weights | {name: weights[first] for name, first in first_names.items() if first in weights}
    )


def _first_names(state_dict: dict[str, torch.Tensor]) -> dict[str, str]:
    """For each name the first one that stands for the same memory, itself unless weights are tied."""
    seen: dict[tuple[int, torch.Size], str] = {}
    return {
        name: seen.setdefault((tensor.data_ptr(), tensor.shape), name) if tensor.numel() else name
        for name, tensor in state_dict.items()
    }


def save_object(value: Any, path: Path) -> None:
    """Writes tensors in plain containers."""
    with path.open("wb") as file:
        torch.save(value, file)


def load_object(path: Path) -> Any:
    """Reads what `save_object` wrote; only tensors and plain containers, so a foreign file cannot run code."""
    return torch.load(path, map_location="cpu", weights_only=True)


def read_state(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's description of the run, the file that is written last.

    Raises:
        CheckpointError: If the folder is not a complete checkpoint.
    """
    try:
        return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"'{folder}' is not a complete checkpoint: it has no {STATE_FILE}.") from None
