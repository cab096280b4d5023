"""The processes of a run, and sums over them that are equal to the bit on each."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState


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
