"""Trains a `VQModelForImageClassification`: cross entropy and commitment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor, nn

from hf_vq.metrics.classification import ClassificationMetrics
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_vq_classifier import VQModelForImageClassification
from hf_vq.training.arguments import ClassifierTrainingArguments
from hf_vq.training.classifier_data import MISSING_LABELS, check_labels, check_problem
from hf_vq.training.image_trainer import ImageTrainer
from hf_vq.training.networks import MODEL
from hf_vq.training.order import Batch
from hf_vq.training.publishing import card_of_run


class ClassifierTrainer(ImageTrainer):
    """Trains a classifier with a quantized layer.

    The loss is `cross entropy + commitment_weight * commitment`.

    Args:
        model: The classifier.
        args: The settings.
        train_dataset: Map-style, with items `{"pixel_values": (channels, height, width), "label": int}`, the pixels in
            the configuration's `pixel_range`, or a stream.
        eval_dataset: Held-out images, likewise; without it nothing is measured.
        image_processor: Saved beside the model; by default the one that its configuration implies.

    Raises:
        ValueError: The data have no labels, or labels that the model has not; the data or the image processor have
            another range of pixels than the model.

    Example:

        >>> model = VQModelForImageClassification(VQImageClassificationConfig(num_labels=10))
        >>> args = ClassifierTrainingArguments(output_dir="out", random_flip=False)
        >>> trainer = ClassifierTrainer(model, args, train_images, test_images)
        >>> accuracy = trainer.train()["accuracy"]
        >>> trainer.close()
    """

    args: ClassifierTrainingArguments
    model: VQModelForImageClassification
    progress_metrics = ("loss", "accuracy", "perplexity")

    def __init__(
        self,
        model: VQModelForImageClassification,
        args: ClassifierTrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        image_processor: VQImageProcessor | None = None,
    ) -> None:
        processor = image_processor or VQImageProcessor.for_config(model.config)
        super().__init__(model, args, train_dataset, eval_dataset, processor)
        check_problem(model.config)
        check_labels(train_dataset, model.num_labels, "training")
        if eval_dataset is not None:
            check_labels(eval_dataset, model.num_labels, "held-out")
        # The first loss would write it, and the settings would seem to have changed when the run is resumed.
        model.config.problem_type = "single_label_classification"
        freeze_unused(model)
        tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
        self.add_model(undecayed=[weight for table in tables for weight in table.parameters()])

    def backward_pass(self, batch: Batch, shared: bool, micro_batches: int) -> dict[str, Tensor]:
        """Forward and backward of the model."""
        labels = self._labels(batch)
        with self.networks.gradients_shared(MODEL, shared):
            out, replaced = self.forward_pass(self.to_device(batch), labels=labels)
            self.accelerator.backward(out.loss / micro_batches)
        names = ("loss", "classification_loss", "commitment_loss", "perplexity", "usage", "quantization_error")
        terms = {name: out[name] for name in names if out.get(name) is not None}
        return terms | {"accuracy": (out.logits.argmax(-1) == labels).float().mean(), "replaced_codes": replaced}

    def _labels(self, batch: Batch) -> Tensor:
        if "label" not in batch:  # a stream, which could not be looked at before
            raise ValueError(MISSING_LABELS.format("training or held-out", "or no labels at all"))
        return batch["label"].to(self.accelerator.device, non_blocking=True)

    def task_loss(self, batch: Batch) -> Tensor:
        """The cross entropy."""
        # The class's own forward: Accelerate's autocast is on the instance.
        out = type(self.model).forward(self.model, self.to_device(batch), labels=self._labels(batch))
        assert out.classification_loss is not None
        return out.classification_loss

    def evaluation(self) -> tuple[dict[str, float], dict[str, Image.Image]]:
        """Right answers and use of the codes on the held-out images, in float32."""
        model = self.published_model()
        metrics = ClassificationMetrics(model.config.num_codes)
        for batch in self.held_out_batches(self.eval_dataset):
            # The class's own forward: Accelerate's autocast is on the instance, and users load the model without it.
            out = type(model).forward(model, self.to_device(batch), labels=self._labels(batch))
            metrics.update(out.logits, self._labels(batch), out.image_tokens, out.quantization_error)
        return metrics.compute(self.accelerator), {}

    def card(self, folder: Path) -> ModelCard:
        """The card, with the measured numbers."""
        return card_of_run(self, self.args.dataset)


def freeze_unused(model: VQModelForImageClassification) -> None:
    """Takes the gradient from what the logits do not depend on, such as mask tokens, which several processes await."""
    config = model.config
    training = model.training
    model.eval()
    try:
        image = torch.zeros(1, config.num_channels, config.image_size, config.image_size, device=model.device)
        trained = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            logits = model(image).logits
        for parameter, gradient in zip(
            trained, torch.autograd.grad(logits.sum(), trained, allow_unused=True), strict=True
        ):
            if gradient is None:
                parameter.requires_grad_(False)
    finally:
        model.train(training)
