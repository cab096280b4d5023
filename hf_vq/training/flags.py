"""What every step tells all ranks: whether its losses and gradients were finite, and whether a rank was told to stop.

The host reads it a step later, so that it does not wait for the device. What is not finite changes nothing meanwhile:
the step and all after it are masked on the device, and codes and buffers, which forward passes change, are put back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_vq.modeling.late_values_vq import LateValues
from hf_vq.training.checkpoints import list_checkpoints


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""

    def __init__(self, step: int, losses: Tensor, output_dir: Path) -> None:
        checkpoints = list_checkpoints(output_dir)
        last = f"The last good checkpoint is '{checkpoints[-1]}'" if checkpoints else "There is no checkpoint yet"
        super().__init__(
            f"The loss or its gradient is NaN or infinite in step {step} (loss on this process: {losses.tolist()}). "
            f"Training stopped before the optimizer's step, and nothing was overwritten. {last}. "
            "A smaller learning_rate, a longer warm-up, or mixed_precision=no usually mends it."
        )


class _Step(NamedTuple):
    number: int
    losses: Tensor
    flags: LateValues
    before: list[Tensor]


class StepFlags:
    """The flags of the last steps.

    Args:
        accelerator: Knows the processes.
        output_dir: The folder of the run, for messages.
        changed_by_forwards: The tensors that forward passes change: codes and buffers.
        put_back: Called after these were set to what they were before a step that was not finite.

    Attributes:
        signum: The signal that any rank was told to stop with, as of the last step that was read; 0 if none.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: Path,
        changed_by_forwards: Callable[[], list[Tensor]],
        put_back: Callable[[], None],
    ) -> None:
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.changed_by_forwards, self.put_back = changed_by_forwards, put_back
        self.signum = 0
        self._bad: Tensor | None = None
        self._before: list[Tensor] = []
        self._unread: deque[_Step] = deque()

    def begin_step(self) -> None:
        """Keeps what the forward passes of a step are about to change."""
        tensors = [tensor.detach() for tensor in self.changed_by_forwards()]
        self._before = [torch.empty_like(tensor) for tensor in tensors]
        for dtype in {tensor.dtype for tensor in tensors}:  # a few launches, not one for each tensor
            now = [tensor for tensor in tensors if tensor.dtype == dtype]
            torch._foreach_copy_([tensor for tensor in self._before if tensor.dtype == dtype], now)

    def end_step(self, number: int, losses: Tensor, norms: Tensor | None, signum: int) -> Tensor:
        """Takes in the flags of a step; a collective. Those of the step before are read.

        Args:
            number: The step.
            losses: This rank's losses, `(n,)`.
            norms: Norms of the gradients, equal on all ranks; None where an infinite one is no error.
            signum: The signal that this rank was told to stop with; 0 if none.

        Returns:
            On the device, bool `()`: whether this step or one before it was not finite and must change nothing.

        Raises:
            NonFiniteLossError: The step before was not finite.
        """
        bad = (~losses.detach().isfinite()).any()
        told = torch.stack([bad.float(), losses.new_full((), signum, dtype=torch.float)])
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        bad = told[0] > 0
        if norms is not None:
            bad = bad | (~norms.detach().isfinite()).any()
        self._bad = bad if self._bad is None else self._bad | bad
        told = torch.stack([self._bad.float(), told[1]])
        self._unread.append(_Step(number, losses.detach(), LateValues(told), self._before))
        self.read(keep=1)
        return self._bad

    def read(self, keep: int = 0) -> None:
        """Reads the flags of all steps but the last `keep`.

        Raises:
            NonFiniteLossError: One of them was not finite.
        """
        while len(self._unread) > keep:
            step = self._unread.popleft()
            bad, signum = step.flags.read()
            self.signum = int(signum)
            if bad:
                with torch.no_grad():
                    for tensor, before in zip(self.changed_by_forwards(), step.before, strict=True):
                        tensor.copy_(before)
                self.put_back()
                self._bad = None
                self._unread.clear()
                raise NonFiniteLossError(step.number, step.losses, self.output_dir)
