"""What all trainers share: the loop over optimizer steps, logging, evaluation, checkpoints, and resuming."""

from __future__ import annotations

import copy
import gc
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedModel

from hf_vq.cards.files import save_card
from hf_vq.data.held_out import HeldOut
from hf_vq.hub.folders import STATE_FILE
from hf_vq.modeling.base_quantizer_vq import get_vq_layers
from hf_vq.modeling.micro_batches_vq import micro_batch
from hf_vq.training import checkpoints as ckpt
from hf_vq.training.accelerators import make_accelerator
from hf_vq.training.base_arguments import BaseTrainingArguments
from hf_vq.training.callbacks import TrainerCallback
from hf_vq.training.ema import WeightEMA
from hf_vq.training.flags import NonFiniteLossError, StepFlags
from hf_vq.training.networks import MODEL, TrainedNetworks
from hf_vq.training.optimization import forget_moments
from hf_vq.training.order import Batch, TrainingData, evaluation_batches
from hf_vq.training.publishing import open_repository, publish_model
from hf_vq.training.random_state import preserved_random_state
from hf_vq.training.reporting import LogWindow, Reporter
from hf_vq.training.run_folder import (
    FINAL_FOLDER,
    OutputFolderInUseError,
    choose_start,
    locked,
    take_back_later_steps,
    write_run,
)
from hf_vq.training.settings import changed_settings, described
from hf_vq.training.signals import RunStopped, StopSignals, stop_signals
from hf_vq.training.state import TrainerState
from hf_vq.training.training_state import write_training_state
from hf_vq.utils.files import atomic_folder
from hf_vq.utils.processes import on_main_process, read_on_main_process
from hf_vq.utils.progress import can_draw_bars

logger = logging.getLogger(__name__)


class BaseTrainer(TrainerState):
    """A plain Accelerate loop.

    A subclass adds its model to `networks`, and says what it does with a micro batch (`backward_pass`), what it
    measures (`evaluation`) and what the model's card says (`card`).

    With several processes, the model is wrapped once with `broadcast_buffers=False`. Quantizers keep their state equal
    on all ranks themselves. What else a rank keeps for itself is named by `running_statistics`.

    Args:
        model: The model to train.
        args: The settings.
        train_dataset: Map-style, or a stream.
        eval_dataset: Held-out data, likewise; without it nothing is measured.
        processor: Makes the model's inputs, and is saved beside the model.
    """

    summed_metrics: frozenset[str] = frozenset()
    """Metrics that are added up, over micro batches and over the steps of a log line; the others are averaged."""
    step_metrics: frozenset[str] = frozenset()
    """Metrics that the last micro batch of a step gives for the whole step."""
    progress_metrics: tuple[str, ...] = ("loss",)
    """Metrics that the progress bar shows."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: BaseTrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        processor: Any = None,
    ) -> None:
        self.args: Any = args
        self.model = model
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.processor = processor
        self.held_out: HeldOut | None = getattr(eval_dataset, "held_out", None)
        self.output_dir = Path(args.output_dir)
        self.accelerator = make_accelerator(args)
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.data = TrainingData(train_dataset, args, rank, world_size)
        self.networks = TrainedNetworks(self.accelerator, args)
        # Placed before the average is copied, and copied before Accelerate patches the model's forward.
        self.networks.place(model)
        self.ema = WeightEMA(model, args.ema_decay) if args.use_ema else None
        if args.fsdp and world_size == 1:
            logger.info("fsdp: there is one process, which holds the whole model")
        if self.networks.sharded:
            self.unsharded = copy.deepcopy(model).eval().requires_grad_(False).cpu()
            if self.ema is not None:
                self.ema.shard(model)
        self.rewritten: dict[nn.Parameter, Tensor] = {}  # rows that this step's forwards initialized or replaced
        self.gathers_statistics = True  # a step's micro batches are one for a codebook; not in runs of version 0.1.0
        self.step = 0
        self.last_learning_rate: float = 0.0
        self.eval_metrics: dict[str, float] | None = None
        self.eval_pictures: dict[str, Image.Image] | None = None
        self.changes: list[dict[str, Any]] = []  # of settings, each with the step at which the run was resumed
        self.base_model: dict[str, Any] | None = None  # what the run started from
        self.hub_repository: str | None = None
        self.flags = StepFlags(self.accelerator, self.output_dir, self._changed_by_forwards, self._put_back)
        self.signals = StopSignals()
        self.window = LogWindow(self.summed_metrics)
        self.reporter = Reporter(self.accelerator, self.output_dir, args)
        self.callbacks: list[TrainerCallback] = []

    # ------------------------------------------------------------------ for subclasses

    def backward_pass(self, batch: Batch, shared: bool, micro_batches: int) -> dict[str, Tensor]:
        """Forward and backward of one micro batch.

        Args:
            batch: The micro batch.
            shared: Whether it is the last one of its step, see `TrainedNetworks.gradients_shared`.
            micro_batches: Micro batches of a step; losses are divided by it before their gradients are taken.

        Returns:
            Scalars to log: `loss`, for every other network that learns NAME `NAME_loss`, and any others.
        """
        raise NotImplementedError

    def learning_networks(self) -> list[str]:
        """The networks that this step's optimizers move."""
        return [MODEL]

    def evaluation(self) -> tuple[dict[str, float], dict[str, Image.Image]]:
        """Metrics on the held-out data, reduced over ranks, and pictures (on the main process)."""
        raise NotImplementedError

    def card(self, folder: Path) -> ModelCard:
        """The model's card; the pictures that it shows are written into the folder."""
        raise NotImplementedError

    # ------------------------------------------------------------------ a step

    def train_step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One optimizer step on the micro batches of a step; returns scalars to log."""
        self.rewritten = {}
        self.flags.begin_step()
        values: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            with micro_batch(self.model, *((number, len(batches)) if self.gathers_statistics else (0, 1))):
                terms = self.backward_pass(batch, number + 1 == len(batches), len(batches))
            for name, value in terms.items():
                share = value.detach() if name in self.summed_metrics else value.detach() / len(batches)
                values[name] = values[name] + share if name in values else share
            if self.gathers_statistics:
                values |= {name: terms[name].detach() for name in self.step_metrics & terms.keys()}
        forget_moments(self.networks.optimizers[MODEL], self.rewritten.items())
        names = self.learning_networks()
        losses = torch.stack([values["loss" if name == MODEL else f"{name}_loss"] for name in names])
        norms = self.networks.clip_gradients(names)
        # With loss scaling an infinite gradient is ordinary: the scaler leaves the step out.
        checked = None if self.accelerator.scaler is not None else torch.stack(list(norms.values()))
        masked = self.flags.end_step(self.step + 1, losses, checked, self.signals.received)
        self.last_learning_rate = float(self.networks.schedules[MODEL].get_last_lr()[0])
        self.networks.step(names, masked)
        if self.ema is not None:
            self.ema.update(self.model, {id(weight): rows for weight, rows in self.rewritten.items()}, masked)
        return values | {"grad_norm" if name == MODEL else f"{name}_grad_norm": norm for name, norm in norms.items()}

    # ------------------------------------------------------------------ the loop

    def train(self) -> dict[str, float]:
        """Trains to `max_steps`, or goes on doing so, and writes the final model.

        Returns:
            The metrics of the last evaluation.

        Raises:
            RunStopped: SIGTERM, SIGUSR1 or Ctrl-C came. Once the first step has begun, there is a checkpoint.
        """
        with stop_signals() as self.signals, locked(self.output_dir, self.accelerator):
            self._open_run()
            with self.signals.deferred():
                return self._train()

    def _train(self) -> dict[str, float]:
        args, accelerator = self.args, self.accelerator
        batches = self.data.batches(self.step)
        silent = args.disable_tqdm or not accelerator.is_main_process or not can_draw_bars()
        progress = tqdm(total=args.max_steps, initial=self.step, disable=silent, desc="train")
        self.networks.train()
        started = self.step
        with progress, logging_redirect_tqdm():
            while self.step < args.max_steps:
                began = time.perf_counter()
                values = self.train_step([next(batches) for _ in range(args.gradient_accumulation_steps)])
                self.step += 1
                if args.torch_compile and self.step == started + 1:
                    logger.info("the first step took %.1f s, with compilation", time.perf_counter() - began)
                self.window.add(values, self.data.images_per_step, time.perf_counter() - began)
                progress.update()
                last = self.step == args.max_steps
                if last or _due(self.step, args.logging_steps):
                    progress.set_postfix(self._log_training(in_words=silent))
                if self.eval_dataset is not None and (last or _due(self.step, args.eval_steps)):
                    self._log_evaluation()
                for callback in self.callbacks:
                    callback.on_step_end(self)
                # One rank alone looks at once; several have agreed within the step.
                signum = self.signals.received if accelerator.num_processes == 1 else self.flags.signum
                # After logging: every line up to a checkpoint's step is on the disk when the checkpoint is.
                if last or signum or _due(self.step, args.save_steps):
                    self.save_checkpoint()
                if signum and not last:
                    raise RunStopped(signum, self.step)
        if self.eval_dataset is not None and self.eval_pictures is None:
            self.eval_metrics, self.eval_pictures = self._evaluate()  # resumed after its last step
        self.save_model(self.output_dir / FINAL_FOLDER)
        if self.hub_repository is not None and accelerator.is_main_process:
            publish_model(self.output_dir / FINAL_FOLDER, self.hub_repository, self.step)
        return self.eval_metrics or {}

    def _open_run(self) -> None:
        """Guards the output folder, finds where to begin, and puts everything into the state of that place."""
        args, accelerator = self.args, self.accelerator

        def open_folder() -> tuple[Path | None, str | None]:
            start = choose_start(self.output_dir, args.resume_from_checkpoint, args.overwrite_output_dir)
            ckpt.remove_stale_folders(self.output_dir)
            return start, open_repository(args)

        start, self.hub_repository = on_main_process(open_folder, accelerator)
        if start is not None:
            # The main process reads for all: a node with disks of its own has no checkpoint.
            found = read_on_main_process(lambda: (*ckpt.read_checkpoint(start), ckpt.read_state(start)), accelerator)
            state, rank_states, saved = found
            with ckpt.must_fit(start):
                changed = changed_settings(start, saved, self.settings(), args, self.model.config)
                self.load_state_dict(state)
                self.change(saved, changed, rank_states)
            logger.info("continuing from '%s'", start)
        if accelerator.is_main_process:
            take_back_later_steps(self.output_dir, self.step)
        on_main_process(lambda: write_run(self.output_dir, self.settings(), self.held_out), accelerator)
        self.reporter.start(self.settings(), self.step)
        for callback in self.callbacks:
            callback.on_train_begin(self)
        accelerator.wait_for_everyone()
        # Last, so that nothing above has an influence on the random numbers. Each rank draws its own; the quantizer
        # shares what must be equal.
        if start is not None:
            self.load_rank_state_dict(rank_states[accelerator.process_index])
        else:
            set_seed(args.seed, device_specific=True)

    def _changed_by_forwards(self) -> list[Tensor]:
        """Codes and buffers, which change before it is known whether a step is finite."""
        layers = [layer for layer in get_vq_layers(self.model) if not layer.is_frozen()]
        codes = [weight for layer in layers for weight in layer.code_parameters()]
        return [*codes, *(buffer for network in self.networks.modules.values() for buffer in network.buffers())]

    def _put_back(self) -> None:
        if self.ema is not None:
            self.ema.take_over(self.model)

    def _log_training(self, in_words: bool) -> dict[str, float]:
        self.flags.read()
        values = self.window.take(lambda stacked: self.accelerator.reduce(stacked, "mean"))
        values["learning_rate"] = self.last_learning_rate
        self.reporter.training(self.step, self.data.epoch(self.step), values, in_words)
        return {name: values[name] for name in self.progress_metrics if name in values}

    def close(self) -> None:
        """Ends the run's trackers and processes. The trainer is of no use afterwards, its model is."""
        self.networks.clear()  # first: a process that leaves with live DDP objects can hang the others
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    # ------------------------------------------------------------------ evaluation

    def evaluate(self) -> dict[str, float]:
        """Metrics on the held-out data, reduced over ranks. With `use_ema` the averaged weights are measured."""
        return self._evaluate()[0]

    def held_out_batches(self, dataset: Any) -> Iterator[Batch]:
        """This process's part of the held-out data."""
        args, accelerator = self.args, self.accelerator
        rank, world_size, workers = accelerator.process_index, accelerator.num_processes, args.dataloader_num_workers
        return evaluation_batches(dataset, args.eval_batch_size, args.max_eval_images, rank, world_size, workers)

    def _evaluate(self) -> tuple[dict[str, float], dict[str, Image.Image]]:
        self.flags.read()
        if self.eval_dataset is None:
            raise ValueError("There is no eval_dataset to evaluate on.")
        self.average_statistics()
        training = self.model.training
        self.model.eval()
        with self.whole_published_model(), preserved_random_state(), torch.no_grad():
            result = self.evaluation()
        self.model.train(training)
        return result

    def _log_evaluation(self) -> None:
        self.eval_metrics, self.eval_pictures = self._evaluate()
        self.reporter.evaluation(self.step, self.data.epoch(self.step), self.eval_metrics, self.eval_pictures)
        self.accelerator.wait_for_everyone()

    # ------------------------------------------------------------------ the finished model

    def save_model(self, folder: str | Path) -> None:
        """Writes the model as a complete Hub repository; an older one in its place is replaced in one go."""
        self.average_statistics()
        self.data.count_readable()

        def write() -> None:
            try:
                with atomic_folder(Path(folder)) as temporary:
                    self.write_model(temporary)
            except Exception as reason:
                raise ckpt.CheckpointError(f"Could not write the model to '{folder}': {reason}") from reason

        with self.whole_published_model():
            on_main_process(write, self.accelerator)
        self.published_model().name_or_path = str(Path(folder).resolve())  # where `push_to_hub` finds its card

    def write_model(self, folder: Path) -> None:
        """Writes configuration, weights, processor and card into an existing folder."""
        self.published_model().save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        if self.held_out is not None:
            self.held_out.write(folder)
        if self.args.save_training_state:
            write_training_state(folder, self.networks)
        save_card(self.card(folder), folder)

    def recipe(self) -> dict[str, Any]:
        """The card's rows on how the weights were made; what is off is None."""
        return {
            "fine-tuned from": self.base_model_name(),
            "training images": self.data.num_readable,
            "steps": self.step,
            "images per step": self.data.images_per_step,
            "images seen": self.data.images_seen(self.step),
            "changed": described(self.changes),
            "training state": f"in {STATE_FILE}, for --init_from" if self.args.save_training_state else None,
            "processes": f"{self.accelerator.num_processes} x {self.accelerator.device.type}",
            **self.args.recipe(),
        }

    def base_model_name(self) -> str | None:
        """What the run was fine-tuned from, with the commit; None if it started from nothing."""
        base = self.base_model
        return None if base is None else f"{base['name']}@{base['commit'][:12]}" if base["commit"] else base["name"]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def train_to_the_end(trainer: BaseTrainer) -> None:
    """What a script does with its trainer: it trains and closes it. A user's mistake ends the script with one line."""
    try:
        trainer.train()
    except (OutputFolderInUseError, ckpt.CheckpointError, NonFiniteLossError) as error:
        raise SystemExit(f"error: {error}") from None
    except RunStopped as stopped:
        if stopped.step is not None:  # before the first step the other processes may be anywhere
            trainer.close()
        raise
    trainer.close()
    logger.info("The finished model is in %s", trainer.output_dir / FINAL_FOLDER)
