"""The settings of a run, and whether a run that resumes has those of the run that it continues."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hf_vq.modeling.version_vq import VERSION_KEY
from hf_vq.training.arguments import BaseTrainingArguments
from hf_vq.training.checkpoints import CheckpointError
from hf_vq.utils.settings import differences

# Written by save_pretrained or by the version at hand, without any meaning for a run.
_IGNORED_CONFIG = {
    VERSION_KEY, "transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures", "auto_map",
    "custom_pipelines",
}  # fmt: skip


def run_settings(
    args: BaseTrainingArguments, config: PreTrainedConfig, num_processes: int, num_train_images: int | None
) -> dict[str, Any]:
    """All settings of a run, as they read back from JSON.

    Args:
        args: The training arguments.
        config: The model's configuration.
        num_processes: Processes of the run.
        num_train_images: Length of the training set; None for a stream.
    """
    settings = {
        "num_train_images": num_train_images,
        "arguments": args.to_dict(),
        "model": config.to_dict(),
        "num_processes": num_processes,
    }
    return json.loads(json.dumps(settings))


def require_same_settings(
    folder: Path,
    saved: dict[str, Any],
    current: dict[str, Any],
    args: BaseTrainingArguments,
    config: PreTrainedConfig,
) -> None:
    """Refuses a checkpoint whose run had other settings. A setting that it does not know counts as its default.

    Args:
        folder: The checkpoint, for the message.
        saved: The settings in the checkpoint.
        current: The settings of this run.
        args: The training arguments of this run.
        config: The model's configuration.

    Raises:
        CheckpointError: The settings differ; the message lists all differences. Or the checkpoint lies after the
            last step of this run.
    """
    saved_arguments = _argument_defaults(args) | saved["arguments"]
    saved_model = _with_defaults(saved["model"], config)
    counts = ("num_processes", "num_train_images")
    fixed = args.fixed_on_resume()
    first = {name: saved_arguments.get(name) for name in fixed} | {name: saved[name] for name in counts}
    second = fixed | {name: current[name] for name in counts}
    lines = differences(
        {**first, "model": _meaningful(saved_model)},
        {**second, "model": _meaningful(current["model"])},
        "in the checkpoint",
        "now",
    )
    if lines:
        raise CheckpointError(
            f"'{folder}' belongs to a run with other settings:\n  "
            + "\n  ".join(lines)
            + "\nGive the same settings to continue it, or start a new run in another output_dir."
        )
    if saved["step"] > args.max_steps:
        raise CheckpointError(
            f"'{folder}' is at step {saved['step']}, after the last step of this run: max_steps is {args.max_steps}. "
            f"Give max_steps of at least {saved['step']}, or continue from an earlier checkpoint."
        )


def _argument_defaults(args: BaseTrainingArguments) -> dict[str, Any]:
    """The defaults of all arguments that have one."""
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(args):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return defaults


def _with_defaults(saved: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """A checkpoint's configuration, and those within it, with the fields that only later versions have.

    Such a field counts as its default. Fields of a generator's tokenizer count as what they are now: the tokenizer is
    frozen, the hash of its weights is compared, and what its own configuration lacked was found when it was loaded.
    """
    defaults = json.loads(json.dumps(type(config)().to_dict()))
    completed = {**{name: defaults[name] for name in config.to_dict() if name in defaults}, **saved}
    for name, value in saved.items():
        inner = getattr(config, name, None)
        if isinstance(value, dict) and isinstance(inner, PreTrainedConfig):
            completed[name] = inner.to_dict() | value if name == "vq_config" else _with_defaults(value, inner)
    return completed


def _meaningful(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, and those within it, without what has no influence on a run."""
    return {
        name: _meaningful(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in _IGNORED_CONFIG
    }
