"""The settings of a run, and what of them a run that resumes changes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hf_vq.modeling.version_vq import VERSION_KEY
from hf_vq.training.base_arguments import AUTO_SPLIT, BaseTrainingArguments
from hf_vq.training.checkpoints import CheckpointError
from hf_vq.utils.settings import differing_values

# Written by save_pretrained or by the version at hand, without any meaning for a run.
_IGNORED_CONFIG = {
    VERSION_KEY, "transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures", "auto_map",
    "custom_pipelines",
}  # fmt: skip

CHANGEABLE_MODEL_FIELDS = frozenset(
    {
        # of quantizers
        "beta", "sync_nu", "replace_freq", "replace_policy", "alternating_steps", "alternating_kind", "alternating_lr",
        "codebook_decay", "gradient_estimator", "commitment_weight", "encoder_weight", "codebook_weight",
        "wasserstein_weight",
        "entropy_weight", "entropy_diversity", "entropy_temperature",
        # of autoencoders, classifiers and generators
        "reconstruction_loss", "dropout", "label_smoothing", "class_dropout", "mask_schedule", "mask_count",
    }
)  # fmt: skip
"""The fields of models that say how they are trained; all others say what the weights are weights of."""

_BATCHES = frozenset({"num_processes", "train_batch_size", "gradient_accumulation_steps"})


def run_settings(
    args: BaseTrainingArguments,
    config: PreTrainedConfig,
    num_processes: int,
    num_train_images: int | None,
    changes: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """All settings of a run, as they read back from JSON.

    Args:
        args: The training arguments.
        config: The model's configuration.
        num_processes: Processes of the run.
        num_train_images: Length of the training set; None for a stream.
        changes: What was changed when the run was resumed, see `changed_settings`.
    """
    settings = {
        "num_train_images": num_train_images,
        "arguments": args.to_dict(),
        "model": config.to_dict(),
        "num_processes": num_processes,
        "changes": list(changes),
    }
    return json.loads(json.dumps(settings))


def changed_settings(
    folder: Path,
    saved: dict[str, Any],
    current: dict[str, Any],
    args: BaseTrainingArguments,
    config: PreTrainedConfig,
) -> dict[str, list[Any]]:
    """Compares the settings of a checkpoint with those of the run that continues it.

    A larger `max_steps` may be given as it is, and so may another number of processes with the same images per step
    (but not for a stream). Other changes need `allow_changes`. What the weights are weights of never changes. A
    setting that the checkpoint does not know counts as its default.

    Args:
        folder: The checkpoint, for the message.
        saved: The settings in the checkpoint.
        current: The settings of this run.
        args: The training arguments of this run.
        config: The model's configuration.

    Returns:
        Old and new value of each setting that changes; settings of the model are named `model.NAME`.

    Raises:
        CheckpointError: A setting differs that may not; the message lists all differences. Or the checkpoint lies
            after the last step of this run.
    """
    counts = ("num_processes", "num_train_images")
    fixed = args.fixed_on_resume()
    arguments = saved_arguments(saved, args)
    first = {name: arguments.get(name) for name in fixed} | {name: saved[name] for name in counts}
    second = fixed | {name: current[name] for name in counts}
    differing = differing_values(
        {**first, "model": _meaningful(_with_defaults(saved["model"], config))},
        {**second, "model": _meaningful(current["model"])},
    )
    free = free_batches(saved, arguments, current)
    asked = {name: values for name, values in differing.items() if name not in free}
    require_allowed(folder, saved["step"], asked, args)
    return {name: list(values) for name, values in differing.items()}


def free_batches(saved: Mapping[str, Any], arguments: Mapping[str, Any], current: Mapping[str, Any]) -> frozenset[str]:
    """The sizes that may change because the images of each step stay the same; their order does not depend on them.

    Args:
        saved: The settings in the checkpoint.
        arguments: Its training arguments.
        current: `num_processes` and `arguments` of this run.
    """
    runs = ((saved["num_processes"], arguments), (current["num_processes"], current["arguments"]))
    sizes = {count * each["train_batch_size"] * each["gradient_accumulation_steps"] for count, each in runs}
    same = runs[0][0] != runs[1][0] and len(sizes) == 1 and saved["num_train_images"] is not None  # None of a stream
    return _BATCHES if same else frozenset()


def require_allowed(
    folder: Path, step: int, differing: Mapping[str, tuple[Any, Any]], args: BaseTrainingArguments
) -> None:
    """Refuses what a run may not change when it goes on from a checkpoint.

    Args:
        folder: The checkpoint, for the message.
        step: Its step.
        differing: Old and new value of each setting that differs; settings of the model are named `model.NAME`.
        args: The training arguments of the run that continues it.

    Raises:
        CheckpointError: A setting differs that may not, or the checkpoint lies after the last step of this run.
    """
    old, new = differing.get("max_steps", (0, 0))
    free = new > old or args.lr_scheduler == "constant"
    asked = {name: values for name, values in differing.items() if name != "max_steps" or not free}
    never = {name for name in asked if never_changes(name, args)}
    if never or (asked and not args.allow_changes):
        lines = [
            f"  {name}: {before!r} in the checkpoint, {now!r} now" + " (never changes in a run)" * (name in never)
            for name, (before, now) in asked.items()
        ]
        advice = []
        if len(asked) > len(never) and not args.allow_changes:
            advice.append(
                "Leave them out to go on with the settings of the run, or give allow_changes: it changes them from "
                f"step {step} on, and writes down what changed."
            )
        if never:
            advice.append(
                "What never changes takes a new run, in another output_dir, which can start from these weights: "
                f"init_from '{folder}'."
            )
        raise CheckpointError("\n".join([f"'{folder}' belongs to a run with other settings:", *lines, *advice]))
    if step > args.max_steps:
        raise CheckpointError(
            f"'{folder}' is at step {step}, after the last step of this run: max_steps is {args.max_steps}. "
            f"Give max_steps of at least {step}, or continue from an earlier checkpoint."
        )


def never_changes(name: str, args: BaseTrainingArguments) -> bool:
    """Whether a setting stays what it is for as long as a run lasts, also with `allow_changes`."""
    field = name.removeprefix("model.")
    return name in args.never_changes or (field != name and field not in CHANGEABLE_MODEL_FIELDS)


def described(changes: Sequence[Mapping[str, Any]]) -> str | None:
    """What was changed in a run, in words for its log and its card; None if nothing was."""
    words = []
    for change in changes:
        fields = [f"{name} from {old} to {new}" for name, (old, new) in change["settings"].items()]
        words.append(f"at step {change['step']:,}: {', '.join(fields)}")
    return "; ".join(words) or None


def saved_arguments(saved: dict[str, Any], args: Any) -> dict[str, Any]:
    """The training arguments in a checkpoint, with the defaults of those that it does not know.

    Args:
        saved: The settings in the checkpoint.
        args: Training arguments, or their class.
    """
    arguments = _argument_defaults(args) | saved["arguments"]
    return arguments | {"eval_split": arguments["eval_split"] or AUTO_SPLIT}  # None said so in version 0.1.0


def _argument_defaults(args: Any) -> dict[str, Any]:
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
