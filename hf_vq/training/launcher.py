"""What `accelerate launch` says about a run. The run follows it where its own settings are silent."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

_USE_FSDP = "ACCELERATE_USE_FSDP"
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed (--use_deepspeed)",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM (--use_megatron_lm)",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (--use_parallelism_config)",
}
"""What a launcher can ask for and these trainers do not do, by the variables with which it asks."""


def require_supported() -> None:
    """Refuses a launcher that asks for more than several processes with a copy of the model each.

    Raises:
        ValueError: It asks for sharding or another engine; the message names it.
    """
    for variable, name in UNSUPPORTED.items():
        if os.environ.get(variable, "false").lower() in ("true", "1", "yes"):
            raise ValueError(
                f"The launcher asks for {name}, which these trainers do not support. Each process keeps a whole copy "
                "of the model: launch with --multi_gpu (or torchrun), without that flag."
            )


def followed_precision(own: str | None) -> str:
    """The precision of a run: its own, or else the launcher's (`--mixed_precision`), or else "no".

    Args:
        own: What the run's settings say; None if nothing.

    Raises:
        ValueError: The two contradict each other, or the launcher asks for another precision than fp16 or bf16.
    """
    # Accelerate sets "no" where nobody asked for anything, so "no" contradicts nothing.
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() or "no"
    if launcher not in ("no", "fp16", "bf16"):
        raise ValueError(f"The launcher asks for mixed_precision {launcher}: expected no, bf16 or fp16.")
    if own is not None and launcher not in ("no", own):
        raise ValueError(_contradiction("mixed_precision", launcher, own))
    return own or launcher


def require_precision_runs(precision: str, use_cpu: bool) -> None:
    """Refuses fp16 on a CPU, where Accelerate would compute in float32 without a word.

    Args:
        precision: "no", "bf16" or "fp16".
        use_cpu: Whether the run's settings ask for the CPU.

    Raises:
        ValueError: The run would compute in another precision.
    """
    on_cpu = use_cpu or os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")
    if precision == "fp16" and (on_cpu or not torch.accelerator.is_available()):
        raise ValueError(
            "mixed_precision fp16 needs a GPU, and this run computes on the CPU. Use mixed_precision bf16 or no."
        )


def followed_accumulation(own: int | None) -> int:
    """Micro batches per step of a run: its own, or else the launcher's (`--gradient_accumulation_steps`), or else 1.

    Args:
        own: What the run's settings say; None if nothing.

    Raises:
        ValueError: The two contradict each other, or the launcher's is no number.
    """
    written = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or _launcher_flag() or "1"
    if written == "auto":
        written = "1"
    if not written.isdecimal() or int(written) < 1:
        raise ValueError(f"The launcher's gradient_accumulation_steps must be a number from 1 on, got {written!r}.")
    launcher = int(written)
    if own is not None and launcher not in (1, own):
        raise ValueError(_contradiction("gradient_accumulation_steps", launcher, own))
    return launcher if own is None else own


def followed_compile(own: bool | None) -> bool:
    """Whether a run compiles its networks: as it says itself, or else as the launcher (`--dynamo_backend`) says.

    Args:
        own: What the run's settings say; None if nothing.

    Raises:
        ValueError: The launcher names a backend, and the run's settings say not to compile.
    """
    backend = _launcher_backend()
    if own is False and backend != "no":
        raise ValueError(_contradiction("torch_compile", f"{backend} (--dynamo_backend)", False))
    return backend != "no" if own is None else own


def followed_fsdp(own: bool | None) -> bool:
    """Whether a run shards its weights: as it says itself, or else as the launcher (`--use_fsdp`) says.

    Args:
        own: What the run's settings say; None if nothing.

    Raises:
        ValueError: The launcher asks for it, and the run's settings say not to.
    """
    launcher = os.environ.get(_USE_FSDP, "false").lower() in ("true", "1", "yes")
    if own is False and launcher:
        raise ValueError(_contradiction("fsdp", "on (--use_fsdp)", False))
    return launcher if own is None else own


@contextmanager
def without_fsdp() -> Iterator[None]:
    """Hides from Accelerate that the launcher asked for FSDP: the trainers shard, also on CPUs, where it would not."""
    asked = os.environ.pop(_USE_FSDP, None)
    if asked is not None:
        logger.info("fsdp: of the launcher's FSDP settings, only --use_fsdp counts; the trainers shard by themselves")
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_USE_FSDP] = asked


def compile_options() -> dict[str, Any]:
    """The arguments of `torch.compile`: inductor, or the backend, mode and so on that the launcher names."""
    from accelerate.utils import TorchDynamoPlugin

    backend = _launcher_backend()
    return TorchDynamoPlugin(backend="inductor" if backend == "no" else backend).to_kwargs()


def _launcher_backend() -> str:
    return os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() or "no"


def _contradiction(name: str, launcher: object, own: object) -> str:
    return (
        f"{name} is {launcher} for the launcher and {own} in the run's own settings (its flag or recipe). Give it in "
        "one place, or the same in both."
    )


def _launcher_flag() -> str | None:
    """`--gradient_accumulation_steps` among the words of the `accelerate launch` that started this process.

    Accelerate hands this flag on to DeepSpeed alone. So the words are read from the launcher itself, where it is a
    parent of this process.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # every accelerate launch sets it
        return None
    import psutil  # which Accelerate needs
    from accelerate.commands.launch import launch_command_parser

    try:
        for parent in psutil.Process().parents():
            words = _words_after_launch(parent.cmdline())
            if words is not None:
                steps = launch_command_parser().parse_known_args(words)[0].gradient_accumulation_steps
                return None if steps is None else str(steps)
    except (psutil.Error, SystemExit):  # a process of another user, or one that has ended; words that do not parse
        pass
    return None


def _words_after_launch(command: list[str]) -> list[str] | None:
    """The words of a command after `accelerate launch`, in any of its spellings; None if it is another command."""
    for place, word in enumerate(command[:4]):  # python -m module, or python program
        name = Path(word).name
        if name == "accelerate" and command[place + 1 : place + 2] == ["launch"]:
            return command[place + 2 :]
        if name == "accelerate-launch" or word == "accelerate.commands.launch":
            return command[place + 1 :]
        if name == "launch.py" and Path(word).parent.name == "commands":
            return command[place + 1 :]
    return None
