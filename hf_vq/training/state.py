"""The state of a trainer: all that changes in training, into checkpoints and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from hf_vq.modeling.base_quantizer_vq import get_vq_layers
from hf_vq.training import checkpoints as ckpt
from hf_vq.training.ema import WeightEMA
from hf_vq.training.networks import TrainedNetworks
from hf_vq.training.order import TrainingData
from hf_vq.training.random_state import random_state, set_random_state
from hf_vq.training.reporting import LogWindow
from hf_vq.training.settings import run_settings
from hf_vq.utils.processes import on_main_process


class TrainerState:
    """What a trainer restores when its run goes on. The loop that changes it is `BaseTrainer`."""

    args: Any
    model: PreTrainedModel
    accelerator: Accelerator
    output_dir: Path
    networks: TrainedNetworks
    ema: WeightEMA | None
    data: TrainingData
    window: LogWindow
    step: int
    eval_metrics: dict[str, float] | None

    def extra_state(self) -> dict[str, Any]:
        """What else changes in training, equal on all ranks: tensors in plain containers."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `extra_state` returned."""

    def average_statistics(self) -> None:
        """Makes the running statistics equal on all ranks; all of them must call it."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """All settings of the run, as they read back from JSON."""
        return run_settings(self.args, self.model.config, self.accelerator.num_processes, self.data.num_images)

    def save_checkpoint(self) -> None:
        """Writes `checkpoint-N` of the current step.

        Raises:
            CheckpointError: On all ranks, if it could not be written. Older checkpoints are untouched.
        """
        self.average_statistics()
        rank_states = gather_object([self.rank_state_dict()])

        folder, config = self.output_dir / f"checkpoint-{self.step}", self.model.config.to_json_string()

        def write() -> None:
            state, limit = self.state_dict(), self.args.save_total_limit
            ckpt.write_checkpoint(folder, config, state, rank_states, self.settings(), limit)

        on_main_process(write, self.accelerator)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes in training and is equal on all ranks, as `write_checkpoint` takes it."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "training": {
                **self.networks.state_dict(),
                "quantizers": [layer.training_state() for layer in get_vq_layers(self.model)],
                "ema_updates": 0 if self.ema is None else self.ema.updates,
                "extra": self.extra_state(),
            },
            "progress": {"step": self.step, "epoch": self.data.epoch(self.step), "eval_metrics": self.eval_metrics},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        training, progress = state["training"], state["progress"]
        ckpt.load_weights(self.model, state["model"])
        self.networks.load_state_dict(training)
        for layer, layer_state in zip(get_vq_layers(self.model), training["quantizers"], strict=True):
            layer.load_training_state(layer_state)
        if self.ema is not None:
            ckpt.load_weights(self.ema.module, state["ema"])
            self.ema.updates = training["ema_updates"]
            self.ema.copy_buffers(self.model)
        self.load_extra_state(training["extra"])
        self.step, self.eval_metrics = progress["step"], progress["eval_metrics"]

    def rank_state_dict(self) -> dict[str, Any]:
        """Everything that changes in training and that each rank has for itself."""
        return {"random": random_state(), "window": self.window.state_dict(), **self.data.state_dict()}

    def load_rank_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `rank_state_dict` returned on this rank."""
        self.data.load_state_dict(state)
        self.window.load_state_dict(state["window"], self.accelerator.device)
        set_random_state(state["random"])
