"""What all trainers share: the loop over optimizer steps, logging, evaluation, checkpoints, and going on from them."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, broadcast_object_list, set_seed
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedModel

from hf_vq.hub.repository import create_repository, publish_folder
from hf_vq.training import checkpoints as ckpt
from hf_vq.training.arguments import BaseTrainingArguments
from hf_vq.training.callbacks import TrainerCallback
from hf_vq.training.ema import WeightEMA
from hf_vq.training.metrics_log import LogWindow
from hf_vq.training.optimization import build_schedule
from hf_vq.training.order import Batch, DataOrder, is_stream, stream_batches, training_batches
from hf_vq.training.reporting import Reporter
from hf_vq.training.run_checkpoint import load_checkpoint, save_checkpoint
from hf_vq.training.run_folder import (
    FINAL_FOLDER,
    LOGGING_FOLDER,
    MONITOR_FOLDER,
    OutputFolderInUseError,
    batch_norm_statistics,
    choose_start,
    preserved_random_state,
    set_random_state,
)
from hf_vq.training.snapshots import snapshot_files
from hf_vq.utils.files import atomic_folder

logger = logging.getLogger(__name__)


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""


class BaseTrainer:
    """A plain Accelerate loop. A subclass says what a step is (`train_step`) and what to measure (`evaluation`).

    Several processes: the model is wrapped once with `broadcast_buffers=False`. Quantizers keep their state equal on
    all ranks themselves. Batch norm normalises with the statistics of each rank's own batch, and the running ones are
    averaged over ranks before they are read, in evaluation and checkpoints; `SyncBatchNorm` would cost a collective
    per layer and step, and does not exist on CPUs.

    Args:
        model: The model to train.
        args: The settings.
        train_dataset: Map-style (items with `pixel_values`), or a stream.
        eval_dataset: Held-out images, likewise.
        image_processor: Saved beside the model.
    """

    summed_metrics: frozenset[str] = frozenset()
    """Metrics of a step that a log line adds up; the others it averages."""
    progress_metrics: tuple[str, ...] = ("loss",)
    """Metrics that the progress bar shows."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: BaseTrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        image_processor: Any = None,
    ) -> None:
        self.args: Any = args
        self.model = model
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.image_processor = image_processor
        self.output_dir = Path(args.output_dir)
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            cpu=args.use_cpu or not torch.accelerator.is_available(),
            log_with=args.report_to or None,
            project_config=ProjectConfiguration(
                project_dir=args.output_dir, logging_dir=str(self.output_dir / LOGGING_FOLDER)
            ),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        if not is_stream(train_dataset) and len(train_dataset) == 0:
            raise ValueError("The training set is empty: there is nothing to train on.")
        # Channels-last before the average is copied, and that before Accelerate patches the model's forward.
        self.memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
        _place(model, self.accelerator.device, self.memory_format)
        self.ema = WeightEMA(model, args.ema_decay) if args.use_ema else None
        self.networks: dict[str, nn.Module] = {}
        self.wrapped: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.schedules: dict[str, torch.optim.lr_scheduler.LambdaLR] = {}
        self.step = 0
        self.epoch = 0
        self.last_learning_rate: float = 0.0
        self.eval_metrics: dict[str, float] | None = None
        self.eval_pictures: dict[str, Image.Image] | None = None
        self.hub_repository: str | None = None
        self.window = LogWindow(self.summed_metrics)
        self.reporter = Reporter(self.accelerator, self.output_dir, args)
        self.callbacks: list[TrainerCallback] = []
        self.stream_state: dict[str, Any] | None = None

    # ------------------------------------------------------------------ for subclasses

    def add_network(self, name: str, network: nn.Module, groups: list[dict[str, Any]], learning_rate: float) -> None:
        """Registers a network with its own AdamW and schedule, and wraps it for the processes of the run."""
        args = self.args
        _place(network, self.accelerator.device, self.memory_format)
        optimizer = torch.optim.AdamW(
            groups, lr=learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon
        )
        self.networks[name] = network
        self.optimizers[name] = optimizer
        self.schedules[name] = build_schedule(optimizer, args)
        # The optimizers stay unwrapped: Accelerate would update the fp16 loss scale once for each of them.
        self.wrapped[name] = self.accelerator.prepare_model(network)

    def train_step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One optimizer step on the micro batches of a step; returns scalars to log."""
        raise NotImplementedError

    def task_loss(self, batch: Batch) -> Tensor:
        """What the model is trained for, without commitment: the mean over a batch, with gradients, in float32."""
        raise NotImplementedError(f"{type(self).__name__} does not say its task loss, which a codebook monitor needs.")

    def evaluation(self) -> tuple[dict[str, float], dict[str, Image.Image]]:
        """Metrics on the held-out data, reduced over ranks, and pictures (on the main process)."""
        raise NotImplementedError

    def write_model(self, folder: Path) -> None:
        """Writes a complete Hub repository into an existing folder."""
        raise NotImplementedError

    def extra_state(self) -> dict[str, Any]:
        """What else changes in training, equal on all ranks: tensors in plain containers."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `extra_state` returned."""

    # ------------------------------------------------------------------ pieces of a step

    def to_device(self, batch: Batch) -> Tensor:
        """A batch's pixels on this process's device."""
        pixel_values = batch["pixel_values"].to(self.accelerator.device, non_blocking=True)
        return pixel_values.contiguous(memory_format=self.memory_format)

    def gradients_shared(self, name: str, shared: bool) -> AbstractContextManager[Any]:
        """Leaves out the exchange of gradients in all but the last micro batch of a step."""
        return nullcontext() if shared else self.accelerator.no_sync(self.wrapped[name])

    def apply_gradients(self, names: list[str], losses: Tensor) -> dict[str, Tensor]:
        """Clips, checks that everything is finite, and steps the optimizers and schedules of some networks.

        Args:
            names: The networks whose gradients are complete.
            losses: The losses of this step.

        Returns:
            The norm of each network's gradient before clipping.

        Raises:
            NonFiniteLossError: On all ranks, before any optimizer steps.
        """
        scaler = self.accelerator.scaler
        norms = {}
        for name in names:
            if scaler is not None:
                scaler.unscale_(self.optimizers[name])
            parameters = [weight for group in self.optimizers[name].param_groups for weight in group["params"]]
            norms[name] = nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm or float("inf"))
        self._check_finite(losses, torch.stack(list(norms.values())))
        self.last_learning_rate = float(self.schedules[names[0]].get_last_lr()[0])
        for name in names:
            if scaler is not None:
                scaler.step(self.optimizers[name])
            else:
                self.optimizers[name].step()
            self.optimizers[name].zero_grad()
            self.schedules[name].step()
        if scaler is not None:
            scaler.update()
        return norms

    def _check_finite(self, losses: Tensor, norms: Tensor) -> None:
        bad = (~torch.isfinite(losses)).any().float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum")  # one rank must not stop alone
        if self.accelerator.scaler is None:  # with loss scaling an infinite gradient is ordinary: the step is skipped
            bad = bad + (~torch.isfinite(norms)).any()  # equal on all ranks, as the gradients are
        if bad.item() == 0:
            return
        checkpoints = ckpt.list_checkpoints(self.output_dir)
        last = f"The last good checkpoint is '{checkpoints[-1]}'" if checkpoints else "There is no checkpoint yet"
        raise NonFiniteLossError(
            f"The loss or its gradient is NaN or infinite in step {self.step + 1} (loss on this process: "
            f"{losses.tolist()}). Training stopped before the optimizer's step, and nothing was overwritten. "
            f"{last}. A smaller learning_rate, a longer warm-up, or mixed_precision=no usually mends it."
        )

    # ------------------------------------------------------------------ the loop

    def train(self) -> dict[str, float]:
        """Trains to `max_steps`, or goes on doing so, and writes the final model.

        Returns:
            The metrics of the last evaluation.
        """
        args, accelerator = self.args, self.accelerator
        self._open_run()
        micro_batches = args.gradient_accumulation_steps
        images = self.images_per_step()
        batches = self._batches()
        progress = tqdm(
            total=args.max_steps,
            initial=self.step,
            disable=args.disable_tqdm or not accelerator.is_main_process,
            desc="train",
        )
        for network in self.wrapped.values():
            network.train()
        with progress, logging_redirect_tqdm():
            while self.step < args.max_steps:
                began = time.perf_counter()
                values = self.train_step([next(batches) for _ in range(micro_batches)])
                self.step += 1
                self.window.add(values, images, time.perf_counter() - began)
                progress.update()
                last = self.step == args.max_steps
                if last or _due(self.step, args.logging_steps):
                    progress.set_postfix(self._log_training())
                if self.eval_dataset is not None and (last or _due(self.step, args.eval_steps)):
                    self._log_evaluation()
                for callback in self.callbacks:
                    callback.on_step_end(self)
                # After logging: every line up to a checkpoint's step is on the disk when the checkpoint is.
                if last or _due(self.step, args.save_steps):
                    save_checkpoint(self)
        if self.eval_dataset is not None and self.eval_pictures is None:
            self.eval_metrics, self.eval_pictures = self._evaluate()  # resumed after its last step
        self.save_model(self.output_dir / FINAL_FOLDER)
        self._publish()
        return self.eval_metrics or {}

    def evaluate(self) -> dict[str, float]:
        """Metrics on the held-out data, reduced over ranks. With `use_ema` the averaged weights are measured."""
        return self._evaluate()[0]

    def save_model(self, folder: str | Path) -> None:
        """Writes the model as a complete Hub repository; an older one in its place is replaced in one go."""
        self.average_batch_norm()
        error = None
        if self.accelerator.is_main_process:
            try:
                with atomic_folder(Path(folder)) as temporary:
                    self.write_model(temporary)
            except Exception as reason:
                error = f"Could not write the model to '{folder}': {reason}"
                logger.debug("saving failed", exc_info=True)
        self.raise_together(error)

    def close(self) -> None:
        """Ends the run's trackers and processes; the trainer is of no use afterwards, its model is.

        The order matters: a process that leaves with live DDP objects can hang the others.
        """
        self.wrapped.clear()
        self.optimizers.clear()
        self.schedules.clear()
        self.networks.clear()
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def published_model(self) -> Any:
        """The weights that are evaluated and published: the average, where one is kept."""
        return self.model if self.ema is None else self.ema.module

    def _evaluate(self) -> tuple[dict[str, float], dict[str, Image.Image]]:
        if self.eval_dataset is None:
            raise ValueError("There is no eval_dataset to evaluate on.")
        self.average_batch_norm()
        training = self.model.training
        self.model.eval()
        with preserved_random_state(), torch.no_grad():
            result = self.evaluation()
        self.model.train(training)
        return result

    def _batches(self) -> Iterator[Batch]:
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        if is_stream(self.train_dataset):
            if self.stream_state is not None:
                self.train_dataset.load_state_dict(self.stream_state)
            for epoch, batch in stream_batches(self.train_dataset, self.args.train_batch_size, self.epoch):
                self.epoch = epoch
                yield batch
            return
        order = DataOrder(len(self.train_dataset), self.args.train_batch_size, self.args.seed, rank, world_size)
        start = self.step * self.args.gradient_accumulation_steps
        yield from training_batches(self.train_dataset, order, start, self.args.dataloader_num_workers)

    def current_epoch(self) -> float:
        """Epochs of training data seen so far; of a stream, the one it is in."""
        if is_stream(self.train_dataset):
            return float(self.epoch)
        return self.step * self.images_per_step() / len(self.train_dataset)

    def images_per_step(self) -> int:
        """Images that all processes together see in an optimizer step."""
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes

    @torch.no_grad()
    def average_batch_norm(self) -> None:
        """Makes the running statistics of batch norms equal on all ranks; call it on all of them."""
        statistics = batch_norm_statistics(*self.networks.values())
        if statistics and self.accelerator.num_processes > 1:
            flat = self.accelerator.reduce(torch.cat([statistic.flatten() for statistic in statistics]), "mean")
            parts = flat.split([statistic.numel() for statistic in statistics])
            for statistic, part in zip(statistics, parts, strict=True):
                statistic.copy_(part.view_as(statistic))
            if self.ema is not None:
                self.ema.copy_buffers(self.model)

    def _open_run(self) -> None:
        """Guards the output folder, finds where to begin, and gets everything into the state of that place."""
        args, accelerator = self.args, self.accelerator
        found: list[Any] = [None, None]
        if accelerator.is_main_process:
            try:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                found[0] = choose_start(self.output_dir, args.resume_from_checkpoint, args.overwrite_output_dir)
                ckpt.remove_stale_folders(self.output_dir)
                if args.push_to_hub:  # now: who may not push there should not learn it at the end
                    self.hub_repository = create_repository(
                        args.hub_model_id or self.output_dir.resolve().name, private=args.hub_private_repo or None
                    )
            except (OSError, ValueError, ckpt.CheckpointError) as reason:
                found[1] = reason
        broadcast_object_list(found)
        start, error = found
        if error is not None:
            raise error
        if start is not None:
            random = load_checkpoint(self, start)
        elif args.resume_from_checkpoint is not None:
            logger.warning("There is no checkpoint in '%s' yet: the run begins at step 0.", self.output_dir)
        if accelerator.is_main_process:
            for folder in ckpt.set_aside_later_checkpoints(self.output_dir, self.step):
                logger.warning("A checkpoint after step %d was set aside as '%s'.", self.step, folder)
            monitored = self.output_dir / MONITOR_FOLDER
            for folder in (monitored, *monitored.glob("*/")):  # those of a stretch that this run repeats
                for path in snapshot_files(folder, self.step):
                    path.unlink()
        self.reporter.start(self.settings(), self.step)
        for callback in self.callbacks:
            callback.on_train_begin(self)
        accelerator.wait_for_everyone()
        # Last, so that nothing above has an influence. Each rank draws its own numbers; the quantizer shares what
        # must be equal.
        if start is not None:
            set_random_state(random)
        else:
            set_seed(args.seed, device_specific=True)

    def settings(self) -> dict[str, Any]:
        """Training arguments, model configuration and number of processes, as they read back from JSON."""
        settings = {
            "arguments": self.args.to_dict(),
            "model": self.model.config.to_dict(),
            "num_processes": self.accelerator.num_processes,
        }
        return json.loads(json.dumps(settings))

    def raise_together(self, error: str | None) -> None:
        """Raises on all ranks what went wrong on the main one, so that no rank is left waiting."""
        message = [error]
        broadcast_object_list(message)
        if message[0] is not None:
            raise ckpt.CheckpointError(message[0])

    def _publish(self) -> None:
        """Publishes the final folder, if asked to; what goes wrong is reported and takes nothing away."""
        if self.hub_repository is None:
            return
        final = self.output_dir / FINAL_FOLDER
        try:
            commit = publish_folder(final, self.hub_repository, commit_message=f"Upload model of step {self.step}")
            logger.info("The final model is published: %s", commit)
        except (OSError, ValueError) as error:
            logger.error(
                "%s\nThe final model is safe in '%s'. To publish it by hand:\n"
                "    python -c \"from hf_vq.hub import publish_folder; publish_folder('%s', '%s')\"",
                error, final, final, self.hub_repository,
            )  # fmt: skip

    def _log_training(self) -> dict[str, float]:
        values = self.window.take(lambda stacked: self.accelerator.reduce(stacked, "mean"))
        values["learning_rate"] = self.last_learning_rate
        self.reporter.training(self.step, self.current_epoch(), values)
        return {name: values[name] for name in self.progress_metrics if name in values}

    def _log_evaluation(self) -> None:
        self.eval_metrics, self.eval_pictures = self._evaluate()
        self.reporter.evaluation(self.step, self.current_epoch(), self.eval_metrics, self.eval_pictures)
        self.accelerator.wait_for_everyone()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _place(network: nn.Module, device: torch.device, memory_format: torch.memory_format) -> None:
    network.to(device)
    nn.Module.to(network, memory_format=memory_format)  # type: ignore[call-overload]


def train_to_the_end(trainer: BaseTrainer) -> None:
    """What a script does with its trainer: trains and closes it; what a user can mend ends it with one line."""
    try:
        trainer.train()
    except (OutputFolderInUseError, ckpt.CheckpointError, NonFiniteLossError) as error:
        raise SystemExit(f"error: {error}") from None
    trainer.close()
    logger.info("The finished model is in %s", trainer.output_dir / FINAL_FOLDER)
