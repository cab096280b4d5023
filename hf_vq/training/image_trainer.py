"""What trainers on images share: pixels, quantizer layers that train, batch norm, and the codebook monitor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hf_vq.modeling.base_quantizer_vq import get_vq_layers
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.modeling.modeling_vq_classifier import VQModelForImageClassification
from hf_vq.modeling.pixel_range_vq import require_pixel_range
from hf_vq.training.arguments import ImageTrainingArguments
from hf_vq.training.image_data import check_images
from hf_vq.training.monitor import CodebookMonitor
from hf_vq.training.networks import MODEL
from hf_vq.training.optimization import forget_gradients, parameter_groups, rewritten_rows
from hf_vq.training.order import Batch
from hf_vq.training.trainer import BaseTrainer


class ImageTrainer(BaseTrainer):
    """Trains a model with quantizer layers on images.

    A forward pass of the model does the codebook's inner steps, initialization and replacement by itself. The trainer
    takes the task step, seen from the updated codes, and forgets what it knew about rewritten codes: gradients of
    earlier micro batches, and the optimizer's moments.

    Batch norm normalizes with the statistics of each rank's own batch, and the running ones are averaged over ranks
    before they are read, in evaluation and checkpoints. `SyncBatchNorm` would cost a collective per layer and step,
    and does not exist on CPUs.

    A subclass calls `add_model` once its model is ready. With a method `task_loss(batch)`, which is the mean of the
    task's loss over a batch, without commitment, with gradients, and in float32, a codebook monitor can watch it.

    Args:
        model: The model; its configuration says the range of the pixels.
        args: The settings.
        train_dataset: Map-style, with items `{"pixel_values": (channels, height, width), ...}`, or a stream.
        eval_dataset: Held-out images, likewise; without it nothing is measured.
        image_processor: Saved beside the model.

    Raises:
        ValueError: The data or the image processor have another range of pixels than the model.
    """

    args: ImageTrainingArguments
    summed_metrics = frozenset({"replaced_codes"})
    step_metrics = frozenset({"perplexity", "usage"})

    def __init__(
        self,
        model: VQModel | VQModelForImageClassification,
        args: ImageTrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        image_processor: Any = None,
    ) -> None:
        check_images(train_dataset, model.config, "training")
        check_images(eval_dataset, model.config, "held-out")
        if image_processor is not None:
            require_pixel_range(image_processor, model.config)
        super().__init__(model, args, train_dataset, eval_dataset, image_processor)
        self.quantizers = get_vq_layers(model)
        if args.monitor_steps:
            self.callbacks.append(CodebookMonitor(args.monitor_steps, args.monitor_images))

    def add_model(self, undecayed: Iterable[nn.Parameter] = ()) -> None:
        """Adds the model to the networks; its codes and the parameters `undecayed` take no weight decay."""
        codes = [weight for layer in self.quantizers for weight in layer.code_parameters()]
        groups = parameter_groups(self.model, self.args.weight_decay, [*codes, *undecayed])
        self.networks.add(MODEL, self.model, groups, self.args.learning_rate)

    def to_device(self, batch: Batch) -> Tensor:
        """A batch's pixels on this process's device."""
        pixel_values = batch["pixel_values"].to(self.accelerator.device, non_blocking=True)
        return pixel_values.contiguous(memory_format=self.networks.memory_format)

    def forward_pass(self, pixel_values: Tensor, **inputs: Tensor) -> tuple[Any, Tensor]:
        """A training forward of the model. The gradients of codes that it rewrote are forgotten.

        Returns:
            The model's output, and how many codes were rewritten.
        """
        output = self.networks.wrapped[MODEL](pixel_values, **inputs)
        now = rewritten_rows(self.quantizers)
        forget_gradients(now.items())
        for weight, rows in now.items():
            self.rewritten[weight] = self.rewritten[weight] | rows if weight in self.rewritten else rows
        none = pixel_values.new_zeros((), dtype=torch.long)
        return output, sum((rows.sum() for rows in now.values()), start=none)

    def running_statistics(self) -> list[Tensor]:
        """The running means and variances of all batch norms."""
        return [
            statistic
            for network in self.networks.modules.values()
            for module in network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for statistic in (module.running_mean, module.running_var)
            if statistic is not None
        ]
