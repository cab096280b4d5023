"""The processes of a run, and what they do together: sums that are equal to the bit, work of the main one for all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

Result = TypeVar("Result")


def processes_of_run(use_cpu: bool = False, timeout: timedelta | None = None) -> PartialState:
    """Joins the processes of a run; afterwards all share one state.

    Args:
        use_cpu: Whether to compute on the CPU although an accelerator is there.
        timeout: How long a process may wait for the others. Half an hour by default.
    """
    from accelerate import PartialState  # which a core install lacks

    options = {} if timeout is None else {"timeout": timeout}
    return PartialState(cpu=use_cpu or not torch.accelerator.is_available(), **options)


def sum_over_processes(tensor: torch.Tensor, accelerator: Accelerator | None = None) -> torch.Tensor:
    """The sum of all processes' tensors, on the CPU and the same to the bit on each of them; a collective.

    Args:
        tensor: Of the same shape everywhere.
        accelerator: Tells the device of the collective; without it the backend of ``torch.distributed`` does.
    """
    # Gathered and then summed in the order of ranks, the same on each: a ring's order differs from chunk to chunk.
    return torch.stack(gather_over_processes(tensor, accelerator)).sum(0)


def gather_over_processes(tensor: torch.Tensor, accelerator: Accelerator | None = None) -> list[torch.Tensor]:
    """The tensors of all processes in the order of their ranks, on the CPU; a collective. Arguments as above."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [tensor.detach().clone().cpu()]
    if accelerator is not None:
        device = accelerator.device
    else:
        device = torch.device("cuda" if "nccl" in torch.distributed.get_backend() else "cpu")
    parts = [torch.empty_like(tensor, device=device) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor.to(device))
    return [part.cpu() for part in parts]


@torch.no_grad()
def average_over_processes(tensors: list[torch.Tensor], accelerator: Accelerator) -> None:
    """Sets tensors to their mean over all processes, in place; a collective."""
    flat = accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def on_main_process(work: Callable[[], Result], accelerator: Accelerator | PartialState) -> Result:
    """Does something on the main process alone; a collective, so that no process is left waiting when it fails.

    Args:
        work: What to do. Its result must be picklable.
        accelerator: Tells the main process.

    Returns:
        The result of `work`, on all processes.

    Raises:
        Exception: On all processes, what `work` raised on the main one.
    """
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as reason:
            outcome[1] = reason
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
