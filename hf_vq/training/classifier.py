"""Trains a `VQModelForImageClassification`: cross entropy and commitment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from hf_vq.cards.classifier import classifier_card
from hf_vq.metrics.classification import ClassificationMetrics
from hf_vq.modeling.base_quantizer_vq import get_vq_layers
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_vq_classifier import VQModelForImageClassification
from hf_vq.modeling.pixel_range_vq import require_pixel_range
from hf_vq.modeling.version_vq import __version__
from hf_vq.training.arguments import ClassifierTrainingArguments
from hf_vq.training.classifier_data import NO_LABELS, check_labels, check_problem
from hf_vq.training.image_data import check_images
from hf_vq.training.monitor import CodebookMonitor
from hf_vq.training.optimization import forget_gradients, forget_moments, parameter_groups, rewritten_rows
from hf_vq.training.order import Batch, evaluation_batches
from hf_vq.training.recipe import measured_split, recipe_rows
from hf_vq.training.trainer import BaseTrainer


class ClassifierTrainer(BaseTrainer):
    """Trains a classifier with a quantized layer.

    As in `TokenizerTrainer`, a forward pass of the model does the codebook's inner steps, initialisation and
    replacement by itself; the step here is the task step on `cross entropy + commitment_weight * commitment`, seen
    from the updated codes.

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
    summed_metrics = frozenset({"replaced_codes"})
    progress_metrics = ("loss", "accuracy", "perplexity")

    def __init__(
        self,
        model: VQModelForImageClassification,
        args: ClassifierTrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        image_processor: VQImageProcessor | None = None,
    ) -> None:
        check_images(train_dataset, model.config, "training")
        check_images(eval_dataset, model.config, "held-out")
        processor = image_processor or VQImageProcessor.for_config(model.config)
        require_pixel_range(processor, model.config)
        super().__init__(model, args, train_dataset, eval_dataset, processor)
        check_problem(model.config)
        check_labels(train_dataset, model.num_labels, "training")
        if eval_dataset is not None:
            check_labels(eval_dataset, model.num_labels, "held-out")
        # The first loss would write it, and the settings would seem to have changed when the run is resumed.
        model.config.problem_type = "single_label_classification"
        self.quantizers = get_vq_layers(model)
        freeze_unused(model)
        codes = [weight for layer in self.quantizers for weight in layer.code_parameters()]
        tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
        undecayed = codes + [weight for table in tables for weight in table.parameters()]
        groups = parameter_groups(model, args.weight_decay, undecayed)
        self.add_network("model", model, groups, args.learning_rate)
        if args.monitor_steps:
            self.callbacks.append(CodebookMonitor(args.monitor_steps, args.monitor_images))

    def train_step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One optimizer step on the loss of the model."""
        values: dict[str, Tensor] = {}
        rewritten: dict[nn.Parameter, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            with self.gradients_shared("model", number == len(batches)):
                labels = self._labels(batch)
                out = self.wrapped["model"](self.to_device(batch), labels=labels)
                now = rewritten_rows(self.quantizers)
                forget_gradients(now.items())
                for weight, rows in now.items():
                    rewritten[weight] = rewritten[weight] | rows if weight in rewritten else rows
                self.accelerator.backward(out.loss / len(batches))
            terms = {
                name: getattr(out, name)
                for name in ("loss", "classification_loss", "commitment_loss", "perplexity", "usage",
                             "quantization_error")
                if getattr(out, name) is not None
            }  # fmt: skip
            terms["accuracy"] = (out.logits.argmax(-1) == labels).float().mean()
            terms["replaced_codes"] = torch.as_tensor(sum(rows.sum() for rows in now.values()), device=labels.device)
            for name, value in terms.items():
                share = value.detach() if name in self.summed_metrics else value.detach() / len(batches)
                values[name] = values[name] + share if name in values else share
        forget_moments(self.optimizers["model"], rewritten.items())
        norms = self.apply_gradients(["model"], values["loss"].unsqueeze(0))
        if self.ema is not None:
            self.ema.update(self.model, {id(weight): rows for weight, rows in rewritten.items()})
        values["grad_norm"] = norms["model"]
        return values

    def _labels(self, batch: Batch) -> Tensor:
        if "label" not in batch:  # a stream, which could not be looked at before
            raise ValueError(NO_LABELS.format("training or held-out"))
        return batch["label"].to(self.accelerator.device, non_blocking=True)

    def task_loss(self, batch: Batch) -> Tensor:
        """The cross entropy."""
        # The class's own forward: Accelerate's autocast is on the instance.
        out = type(self.model).forward(self.model, self.to_device(batch), labels=self._labels(batch))
        assert out.classification_loss is not None
        return out.classification_loss

    def evaluation(self) -> tuple[dict[str, float], dict[str, Image.Image]]:
        """Right answers and use of the codes on the held-out images, in float32."""
        args, accelerator = self.args, self.accelerator
        model = self.published_model()
        metrics = ClassificationMetrics(model.config.num_codes)
        for batch in evaluation_batches(
            self.eval_dataset,
            args.eval_batch_size,
            args.max_eval_images,
            accelerator.process_index,
            accelerator.num_processes,
            args.dataloader_num_workers,
        ):
            # The class's own forward: Accelerate's autocast is on the instance, and users load the model without it.
            out = type(model).forward(model, self.to_device(batch), labels=self._labels(batch))
            metrics.update(out.logits, self._labels(batch), out.image_tokens, out.quantization_error)
        return metrics.compute(accelerator), {}

    def write_model(self, folder: Path) -> None:
        """Writes configuration, weights, image processor, and a card with the measured numbers."""
        args = self.args
        self.published_model().save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        card = classifier_card(
            self.model.config,
            self.eval_metrics or {},
            args.dataset,
            measured_split(args, args.dataset),
            recipe_rows(self) | {"random flip": args.random_flip or None, "random crop": args.random_crop or None},
            repo_id=self.hub_repository,
            num_parameters=self.model.num_parameters(),
            versions={"torch": torch.__version__, "transformers": transformers.__version__, "hf_vq": __version__},
        )
        (folder / "README.md").write_text(str(card), encoding="utf-8")


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
