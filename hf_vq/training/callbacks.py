"""What can look at a run while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_vq.training.trainer import BaseTrainer


class TrainerCallback:
    """Called by a trainer that has it in `trainer.callbacks`, on all ranks; it must leave the run as it is.

    Whatever a callback changes in weights, buffers or random numbers changes the run, and one that keeps state of its
    own has to find it again when a run is resumed.
    """

    def on_train_begin(self, trainer: BaseTrainer) -> None:
        """The trainer is in the state that it goes on from: `trainer.step` steps are done, maybe 0."""

    def on_step_end(self, trainer: BaseTrainer) -> None:
        """Step `trainer.step` is done; what is written now is on the disk when a checkpoint of this step is."""
