"""What can look at a run while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn

from hf_vq.training.ema import WeightEMA


class ObservedTrainer(Protocol):
    """What a callback may use of a trainer."""

    step: int
    """Optimizer steps done."""
    output_dir: Path
    accelerator: Accelerator
    ema: WeightEMA | None

    @property
    def args(self) -> Any:
        """The settings."""

    @property
    def model(self) -> nn.Module:
        """The model in training, on this process."""

    @property
    def eval_dataset(self) -> Any:
        """The held-out data, or None."""

    @property
    def callbacks(self) -> Sequence[TrainerCallback]:
        """All callbacks of the run."""

    def running_statistics(self) -> list[Tensor]:
        """The tensors that `average_statistics` makes equal on all ranks."""

    def average_statistics(self) -> None:
        """Averages over ranks what each keeps for itself; all ranks must call it."""


class TrainerCallback:
    """Called by a trainer that has it in `trainer.callbacks`, on all ranks; it must leave the run as it is.

    Whatever a callback changes in weights, buffers or random numbers changes the run. A callback that keeps state of
    its own has to find it again when a run is resumed.
    """

    def on_train_begin(self, trainer: ObservedTrainer) -> None:
        """The trainer is in the state that it goes on from: `trainer.step` steps are done, maybe 0."""

    def on_step_end(self, trainer: ObservedTrainer) -> None:
        """Step `trainer.step` is done; what is written now is on the disk when a checkpoint of this step is."""
