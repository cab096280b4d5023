"""The state of a trainer: all that changes in training, into checkpoints and back."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor
from transformers import PreTrainedModel

from hf_vq.modeling.base_quantizer_vq import get_vq_layers
from hf_vq.training import checkpoints as ckpt
from hf_vq.training.ema import WeightEMA
from hf_vq.training.flags import StepFlags
from hf_vq.training.networks import TrainedNetworks
from hf_vq.training.order import Place, TrainingData
from hf_vq.training.random_state import random_state, set_random_state
from hf_vq.training.reporting import LogWindow
from hf_vq.training.settings import described, run_settings, saved_arguments
from hf_vq.training.starting_point import StartingPoint
from hf_vq.training.training_state import read_training_state
from hf_vq.utils.processes import average_over_processes, on_main_process
from hf_vq.utils.tensors import whole

logger = logging.getLogger(__name__)

# Changes after which the place of a process in a stream means nothing.
_OF_STREAMS = {
    "dataset", "dataset_revision", "image_column", "tokens", "tokens_revision", "train_split", "shuffle_buffer",
    "num_processes",
}  # fmt: skip


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
    flags: StepFlags
    step: int
    gathers_statistics: bool
    eval_metrics: dict[str, float] | None
    changes: list[dict[str, Any]]
    base_model: dict[str, Any] | None
    processor: Any
    unsharded: PreTrainedModel | None = None
    """Of a sharded model, which one process alone cannot ask: a place for all of the published weights."""

    def extra_state(self) -> dict[str, Any]:
        """What else changes in training, equal on all ranks: tensors in plain containers."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `extra_state` returned."""

    def running_statistics(self) -> list[Tensor]:
        """Tensors that each rank keeps for itself and that stand for their mean over ranks; here there are none."""
        return []

    def average_statistics(self) -> None:
        """Makes the running statistics equal on all ranks; all of them must call it."""
        statistics = self.running_statistics()
        if statistics and self.accelerator.num_processes > 1:
            average_over_processes(statistics, self.accelerator)
            if self.ema is not None:
                self.ema.copy_buffers(self.model)

    def published_model(self) -> Any:
        """The weights that are evaluated and published: the average, where one is kept.

        Of a sharded run they are there within `whole_published_model`.
        """
        return self.unsharded or (self.model if self.ema is None else self.ema.module)

    @contextmanager
    def whole_published_model(self) -> Iterator[None]:
        """Has the published weights of a sharded run whole on all processes; a collective."""
        if self.unsharded is None:
            yield
            return
        source = self.model if self.ema is None else self.ema.module
        self.unsharded.to(self.accelerator.device)
        self.unsharded.load_state_dict(whole(source.state_dict()))
        try:
            yield
        finally:
            self.unsharded.cpu()

    def settings(self) -> dict[str, Any]:
        """All settings of the run, as they read back from JSON."""
        num_processes, num_images = self.accelerator.num_processes, self.data.num_images
        settings = run_settings(self.args, self.model.config, num_processes, num_images, self.changes)
        processor = None if self.processor is None else json.loads(self.processor.to_json_string())
        return settings | {"base_model": self.base_model, "image_processor": processor}

    def save_checkpoint(self) -> None:
        """Writes `checkpoint-N` of the current step.

        Raises:
            CheckpointError: On all ranks, if it could not be written. Older checkpoints are untouched.
            NonFiniteLossError: On all ranks, if the step was not finite.
        """
        self.flags.read()
        self.average_statistics()
        rank_states = gather_object([self.rank_state_dict()])

        folder, config = self.output_dir / f"checkpoint-{self.step}", self.model.config.to_json_string()
        state = self.state_dict()  # on all processes, for a sharded run gathers it

        def write() -> None:
            limit = self.args.save_total_limit
            ckpt.write_checkpoint(folder, config, state, rank_states, self.settings(), limit)

        on_main_process(write, self.accelerator)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes in training and is equal on all ranks, as `write_checkpoint` takes it.

        Of a sharded run it holds whole tensors, and all processes must call it.
        """
        return {
            "model": whole(self.model.state_dict(keep_vars=True)),
            "ema": None if self.ema is None else whole(self.ema.module.state_dict(keep_vars=True)),
            "training": {
                **self.networks.state_dict(),
                "quantizers": [layer.training_state() for layer in get_vq_layers(self.model)],
                "ema_updates": 0 if self.ema is None else self.ema.updates,
                "gathers_statistics": self.gathers_statistics,
                "extra": self.extra_state(),
            },
            "progress": {
                "step": self.step,
                "epoch": self.data.epoch(self.step),
                "eval_metrics": self.eval_metrics,
                "place": dataclasses.asdict(self.data.place),
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        training, progress = state["training"], state["progress"]
        ckpt.load_weights(self.model, state["model"])
        self.networks.load_state_dict(training)
        for layer, saved in zip(get_vq_layers(self.model), training["quantizers"], strict=True):
            own = layer.training_state()  # an option that was turned on meanwhile begins as new
            layer.load_training_state(own | {name: value for name, value in saved.items() if name in own})
        if self.ema is not None:
            ckpt.load_weights(self.ema.module, state["model"] if state["ema"] is None else state["ema"])
            self.ema.updates = training["ema_updates"]
            self.ema.copy_buffers(self.model)
        self.gathers_statistics = training.get("gathers_statistics", False)
        self.load_extra_state(training["extra"])
        self.step, self.eval_metrics = progress["step"], progress["eval_metrics"]
        self.data.place = Place(**progress.get("place", {}))  # version 0.1.0 had none: its runs never changed

    def start_from(self, point: StartingPoint) -> None:
        """Remembers the model that the run starts from, and takes the state of its training, if it brings one."""
        self.base_model = point.describe()
        if point.state_file is not None:
            count = read_training_state(point.state_file, self.networks)
            logger.info("'%s' brings the state of its training: moments of %d parameters", point.name, count)

    def change(self, saved: dict[str, Any], changed: dict[str, list[Any]], rank_states: list[dict[str, Any]]) -> None:
        """Makes the changes of a run that has been put into the state of a checkpoint.

        With another number of images per step, or of processes, no image of an epoch is skipped or repeated. A
        training set of another length begins its first epoch, and so does a stream of other data or processes.

        Args:
            saved: The checkpoint's description of the run.
            changed: Old and new value of each setting that changes.
            rank_states: The states of the checkpoint's processes; those of further ones are added.
        """
        self.changes, self.base_model = saved.get("changes", []), saved.get("base_model")
        rank_states += [{**rank_states[0], "random": None}] * (self.accelerator.num_processes - len(rank_states))
        if not changed:
            return
        arguments = saved_arguments(saved, self.args)
        per_step = arguments["train_batch_size"] * arguments["gradient_accumulation_steps"] * saved["num_processes"]
        place = self.data.place.after(self.step, per_step)
        begins_anew = self.data.num_images is None and changed.keys() & _OF_STREAMS
        new_data = begins_anew or "num_train_images" in changed
        self.data.place = dataclasses.replace(place, position=0) if new_data else place
        if begins_anew:
            for state in rank_states:
                state |= {"stream": None, "stream_epoch": 0}
        self.changes = [*self.changes, {"step": self.step, "settings": changed}]
        logger.info("changed %s", described(self.changes[-1:]))
        if "max_steps" in changed:
            logger.info("from step %d on, the learning rate follows the schedule of the new length", self.step)

    def rank_state_dict(self) -> dict[str, Any]:
        """Everything that changes in training and that each rank has for itself."""
        return {"random": random_state(), "window": self.window.state_dict(), **self.data.state_dict()}

    def load_rank_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `rank_state_dict` returned on this rank."""
        self.data.load_state_dict(state)
        self.window.load_state_dict(state["window"], self.accelerator.device)
        if state["random"] is not None:
            set_random_state(state["random"])
        else:  # a process that the run did not have before
            set_seed(self.args.seed + self.step, device_specific=True)
