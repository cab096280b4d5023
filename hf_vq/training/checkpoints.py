"""Checkpoint folders, and the state dicts in them. A folder is either complete or not there.

checkpoint-N/
  config.json, model.safetensors    the model; the folder loads with `AutoModel.from_pretrained`
  ema.safetensors                   the average of its weights, if one is kept
  training_state.pt                 optimizers, schedules, other networks, quantizers
  rank_states.pt                    for each process: random numbers, log window, place in a stream
  trainer_state.json                step, epoch, settings, and hashes of all of these files; written last
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_vq.modeling.version_vq import __version__
from hf_vq.utils.files import TEMPORARY_PREFIX, atomic_folder, discard, discard_leftovers, free_space, write_json
from hf_vq.utils.hashes import file_sha256, json_sha256
from hf_vq.utils.tensors import is_sharded, part_of
from hf_vq.utils.text import first_line

CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d+)")
WEIGHTS_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
TRAINING_STATE_FILE = "training_state.pt"
RANK_STATES_FILE = "rank_states.pt"
STATE_FILE = "trainer_state.json"
FILES_KEY, SHA256_KEY = "files", "sha256"  # in the state file: the hash of each other file, and of the rest of it


class CheckpointError(RuntimeError):
    """A checkpoint, or another file of a run, could not be written, found, or used for this run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was written."""


def write_checkpoint(
    folder: Path,
    config: str,
    state: dict[str, Any],
    rank_states: list[dict[str, Any]],
    settings: dict[str, Any],
    limit: int | None = None,
) -> None:
    """Writes a checkpoint in one go, then removes the oldest checkpoints of the run beyond `limit`.

    Args:
        folder: The folder, named `checkpoint-N`.
        config: The model's configuration as JSON. `save_pretrained` would also write the code that defines it.
        state: What is equal on all ranks: `model` and `ema` (or None) are state dicts of networks, `training` holds
            further tensors in plain containers, `progress` holds plain numbers, among them `step`.
        rank_states: The state of each process, in plain containers.
        settings: What a resumed run must share with this one, ready for JSON.
        limit: Checkpoints to keep; None keeps all.

    Raises:
        CheckpointError: It could not be written. Older checkpoints are untouched.
    """
    try:
        with atomic_folder(folder) as temporary:
            (temporary / "config.json").write_text(config, encoding="utf-8")
            save_weights(state["model"], temporary / WEIGHTS_FILE)
            if state["ema"] is not None:
                save_weights(state["ema"], temporary / EMA_FILE)
            save_object(state["training"], temporary / TRAINING_STATE_FILE)
            save_object(rank_states, temporary / RANK_STATES_FILE)
            described = {
                **state["progress"],
                "versions": {"hf_vq": __version__, "torch": torch.__version__},
                **settings,
                FILES_KEY: {path.name: file_sha256(path) for path in sorted(temporary.iterdir())},
            }
            write_json({**described, SHA256_KEY: json_sha256(described)}, temporary / STATE_FILE)
        rotate_checkpoints(folder.parent, limit)
    except Exception as reason:  # a full disk shows as OSError, RuntimeError or SafetensorError
        raise CheckpointError(_failure(folder, reason)) from reason


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads what `write_checkpoint` wrote; `verify_checkpoint` tells before whether it still is that.

    Returns:
        The state that is equal on all ranks, and the state of each process. Tensors are on the CPU.

    Raises:
        DamagedCheckpointError: The folder is not a complete checkpoint, or one of its files cannot be read.
    """
    progress = read_state(folder)
    state = {
        "model": _read(load_file, folder / WEIGHTS_FILE),
        "ema": _read(load_file, folder / EMA_FILE) if (folder / EMA_FILE).exists() else None,
        "training": _read(load_object, folder / TRAINING_STATE_FILE),
        "progress": {name: progress[name] for name in ("step", "epoch", "eval_metrics", "place") if name in progress},
    }
    return state, _read(load_object, folder / RANK_STATES_FILE)


def read_state(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's description of the run: its progress, its settings and its files.

    Raises:
        DamagedCheckpointError: The folder is not a complete checkpoint, or the description is damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise DamagedCheckpointError(f"'{folder}' is not a complete checkpoint: it has no {STATE_FILE}.")
    state = _read(lambda path: json.loads(path.read_text(encoding="utf-8")), path)
    problem = _problem_of_state(state)
    named = CHECKPOINT_PATTERN.fullmatch(folder.name)
    if problem is None and named is not None and state["step"] != int(named.group(1)):
        problem = f"it says that it was written at step {state['step']}"
    if problem is not None:
        raise DamagedCheckpointError(f"'{path}' is damaged: {problem}.")
    return state


def verify_checkpoint(folder: Path) -> bool:
    """Compares all files of a checkpoint with their hashes.

    Returns:
        Whether there are hashes. Version 0.1.0 wrote none; such a checkpoint only has to be readable.

    Raises:
        DamagedCheckpointError: A file is missing, or holds something else than what was written.
    """
    state = read_state(folder)
    if FILES_KEY not in state:
        read_checkpoint(folder)
        return False
    for name, expected in state[FILES_KEY].items():
        if not (folder / name).is_file():
            raise DamagedCheckpointError(f"'{folder}' is damaged: {name} is missing.")
        if _read(file_sha256, folder / name) != expected:
            raise DamagedCheckpointError(f"'{folder}' is damaged: {name} does not hold what was written.")
    return True


def _problem_of_state(state: Any) -> str | None:
    """What is wrong with the content of a state file; None if nothing is."""
    if not isinstance(state, dict):
        return "it holds no settings"
    if (FILES_KEY in state) != (SHA256_KEY in state):
        return "a part of its hashes is missing"
    if SHA256_KEY in state:
        rest = {name: value for name, value in state.items() if name != SHA256_KEY}
        if json_sha256(rest) != state[SHA256_KEY]:
            return "it does not hold what was written"
    kinds: dict[str, type | tuple[type, ...]] = {
        "step": int,
        "epoch": (int, float),
        "eval_metrics": (dict, type(None)),
    }
    wrong = [name for name, kind in kinds.items() if name not in state or not isinstance(state[name], kind)]
    if wrong:
        return f"{' and '.join(wrong)} cannot be read"
    if FILES_KEY in state:
        files = state[FILES_KEY]
        needed = {"config.json", WEIGHTS_FILE, TRAINING_STATE_FILE, RANK_STATES_FILE}
        if not isinstance(files, dict) or not needed <= files.keys() <= needed | {EMA_FILE}:
            return "it names other files than those of a checkpoint"
    return None


def _read(reader: Callable[[Path], Any], path: Path) -> Any:
    """What a reader makes of a file."""
    try:
        return reader(path)
    except FileNotFoundError:
        raise DamagedCheckpointError(f"'{path.parent}' is damaged: {path.name} is missing.") from None
    except Exception as reason:  # whatever JSON, safetensors, pickle and zip say about bytes that they did not write
        raise DamagedCheckpointError(f"'{path}' is damaged: it cannot be read ({first_line(reason)}).") from reason


@contextmanager
def must_fit(folder: Path) -> Iterator[None]:
    """Whatever goes wrong when the content of a checkpoint is put into the objects of a run is its content's fault."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as reason:  # a state dict of other names or shapes, settings that are missing
        raise CheckpointError(f"'{folder}' does not fit this run: {reason!r}.") from reason


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; whether they are damaged is not looked at."""
    return [folder for folder in checkpoint_folders(output_dir) if (folder / STATE_FILE).is_file()]


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """All folders that are named as checkpoints, complete or not, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if CHECKPOINT_PATTERN.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=checkpoint_step)


def newest_good_checkpoint(output_dir: Path) -> tuple[Path | None, bool, list[str]]:
    """Finds the newest checkpoint of a run that is whole.

    Returns:
        The checkpoint, or None if the run has no checkpoint. Whether its hashes were compared. What is wrong with each
        newer one.

    Raises:
        DamagedCheckpointError: There are checkpoints, and all of them are damaged.
    """
    problems: list[str] = []
    for folder in reversed(checkpoint_folders(output_dir)):
        try:
            return folder, verify_checkpoint(folder), problems
        except DamagedCheckpointError as problem:
            problems.append(str(problem))
    if problems:
        raise DamagedCheckpointError(
            f"No checkpoint in '{output_dir}' is whole:\n  " + "\n  ".join(problems) + "\nStart a new run in another "
            "output_dir, or delete this one with overwrite_output_dir."
        )
    return None, False, problems


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
    for folder in checkpoint_folders(output_dir):  # damaged ones, too: a person may want to look at them
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
    """Writes a state dict as safetensors, in the form that `from_pretrained` reads: tied weights stand there once."""
    first_names = _first_names(state_dict)
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items() if first_names[name] == name
    }
    save_file(tensors, path, metadata={"format": "pt"})


def load_weights(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Puts weights that `save_weights` wrote of a network into it, which may be sharded."""
    own = network.state_dict(keep_vars=True)
    weights = weights | {name: weights[first] for name, first in _first_names(own).items() if first in weights}
    network.load_state_dict({name: part_of(value, own.get(name)) for name, value in weights.items()})


def _first_names(state_dict: dict[str, torch.Tensor]) -> dict[str, str]:
    """For each name the first one that stands for the same memory, itself unless weights are tied."""
    seen: dict[Any, str] = {}
    return {
        name: seen.setdefault(_memory(tensor), name) if tensor.numel() else name for name, tensor in state_dict.items()
    }


def _memory(tensor: torch.Tensor) -> Any:
    """What two tensors that are tied have in common. A sharded one may have no memory in this process."""
    return id(tensor) if is_sharded([tensor]) else (tensor.data_ptr(), tensor.shape)


def save_object(value: Any, path: Path) -> None:
    """Writes tensors in plain containers."""
    with path.open("wb") as file:
        torch.save(value, file)


def load_object(path: Path) -> Any:
    """Reads what `save_object` wrote; only tensors and plain containers, so a foreign file cannot run code."""
    return torch.load(path, map_location="cpu", weights_only=True)


def _failure(folder: Path, reason: Exception) -> str:
    """What to tell a user whose checkpoint could not be written."""
    checkpoints = list_checkpoints(folder.parent)
    last = f"The last good checkpoint is '{checkpoints[-1]}'" if checkpoints else "There is no older checkpoint"
    return (
        f"Could not save '{folder}': {reason}. {free_space(folder.parent)}. {last}; what was half written is gone. "
        "Free some space, or lower save_total_limit, and continue with resume_from_checkpoint=latest."
    )
