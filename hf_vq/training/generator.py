"""Trains a `MaskGitModel` on the tokens of images: guess what random masks hide."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor, nn

from hf_vq.cards.generator import class_names
from hf_vq.kinds import SAMPLES_FILE
from hf_vq.metrics.features import ShrunkPixels
from hf_vq.metrics.generation import FrechetDistance, HiddenTokenMetrics
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_maskgit import MaskGitModel
from hf_vq.modeling.options_maskgit import MaskGitSampling
from hf_vq.modeling.pixel_range_vq import require_pixel_range
from hf_vq.plots.images import sample_sheet
from hf_vq.training.arguments import SAMPLES, GeneratorTrainingArguments
from hf_vq.training.checkpoints import CheckpointError
from hf_vq.training.generator_data import FixedMasks, check_tokens, seeded_generator
from hf_vq.training.networks import MODEL
from hf_vq.training.optimization import parameter_groups
from hf_vq.training.order import Batch
from hf_vq.training.publishing import card_of_run
from hf_vq.training.trainer import BaseTrainer
from hf_vq.utils.hashes import weights_sha256

SHEET_COLUMNS = 8


class GeneratorTrainer(BaseTrainer):
    """Trains a generator; its tokenizer stays as it is.

    The masks, the classes that are dropped for guidance, label smoothing and the loss are the model's, see
    `MaskGitConfig`. Evaluation measures, on held-out tokens hidden by masks that the seed fixes, the plain cross
    entropy and how often the likeliest code is right, and draws a sheet of samples, the same seeds each time. With
    `num_distance_images` it generates an image of each held-out image's class and logs `frechet_8x8_pixels`, the
    distance of [`FrechetDistance`] to the held-out images as the tokenizer decodes them. That is no FID: its features
    are images shrunk to 8 x 8 pixels.

    Args:
        model: The generator, with its tokenizer inside.
        args: The settings.
        train_dataset: What `load_token_dataset` returns, or any map-style data set with `image_tokens`, int64 of the
            tokenizer's shape, and for models with classes `label`, an int; -1 for an image of no class. Or a
            `TokenStream`.
        eval_dataset: Held-out tokens, map-style; without them nothing is measured.
        image_processor: Saved beside the model; by default the one that the tokenizer's configuration implies.

    Raises:
        ValueError: The data do not fit the model, see `check_tokens`; or the image processor has another range of
            pixels than the tokenizer.

    Example:

        >>> config = MaskGitConfig.from_preset("tiny", vq_config=tokenizer.config, num_classes=9)
        >>> model = MaskGitModel(config, tokenizer=tokenizer)
        >>> args = GeneratorTrainingArguments(output_dir="out", use_ema=True)
        >>> trainer = GeneratorTrainer(model, args, load_token_dataset("tokens"), load_token_dataset("tokens", "test"))
        >>> metrics = trainer.train()
        >>> trainer.close()
    """

    args: GeneratorTrainingArguments
    model: MaskGitModel

    def __init__(
        self,
        model: MaskGitModel,
        args: GeneratorTrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        image_processor: VQImageProcessor | None = None,
    ) -> None:
        processor = image_processor or VQImageProcessor.for_config(model.config)
        require_pixel_range(processor, model.config)
        super().__init__(model, args, train_dataset, eval_dataset, processor)
        check_tokens(train_dataset, model.config, "training")
        if eval_dataset is not None:
            check_tokens(eval_dataset, model.config, "held-out")
        rows, columns = model.config.grid_size
        tokens = rows * columns * model.config.num_groups
        with SAMPLES.errors_renamed():
            args.sampling().require_steps_within(tokens)
        self.tokenizer_sha256 = weights_sha256(model.tokenizer)
        groups = parameter_groups(model, args.weight_decay, lookup_tables(model))
        self.networks.add(MODEL, model, groups, args.learning_rate)

    def backward_pass(self, batch: Batch, shared: bool, micro_batches: int) -> dict[str, Tensor]:
        """Forward and backward of the model."""
        with self.networks.gradients_shared(MODEL, shared):
            loss = self.networks.wrapped[MODEL](**self._inputs(batch)).loss
            self.accelerator.backward(loss / micro_batches)
        return {"loss": loss}

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        device = self.accelerator.device
        inputs = {"image_tokens": batch["image_tokens"].to(device, non_blocking=True)}
        if self.model.config.num_classes:
            inputs["class_labels"] = batch["label"].to(device, non_blocking=True)
        return inputs

    def extra_state(self) -> dict[str, Any]:
        """Which tokenizer made the tokens."""
        return {"tokenizer_sha256": self.tokenizer_sha256}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Refuses the checkpoint of a run on another tokenizer's tokens."""
        if state["tokenizer_sha256"] != self.tokenizer_sha256:
            raise CheckpointError(
                "The checkpoint was trained on the tokens of another tokenizer than the one given now: its weights "
                f"have the hash {state['tokenizer_sha256'][:12]}..., these {self.tokenizer_sha256[:12]}.... Give the "
                "same tokenizer and tokens to continue, or start a new run in another output_dir."
            )

    # ------------------------------------------------------------------ evaluation

    def evaluation(self) -> tuple[dict[str, float], dict[str, Image.Image]]:
        """Guesses of hidden held-out tokens, in float32, and samples."""
        args, accelerator = self.args, self.accelerator
        model = self.published_model()
        metrics = HiddenTokenMetrics()
        extractor = ShrunkPixels(model.config.vq_config.num_channels)
        distance = FrechetDistance(extractor.num_features)
        for batch in self.held_out_batches(FixedMasks(self.eval_dataset, model.config, args.seed)):
            inputs = self._inputs(batch)
            # The class's own forward: Accelerate's autocast is on the instance, and users load the model without it.
            out = type(model).forward(model, **inputs, mask=batch["mask"].to(accelerator.device), return_loss=False)
            # Ids of separate codebooks follow each other, the logits' last axis counts from 0 in each.
            metrics.update(out.logits, out.image_tokens % model.config.codebook_size, out.mask)
            compared = int((batch["index"] < args.num_distance_images).sum())
            if compared:
                first = {name: value[:compared] for name, value in inputs.items()}
                for images, generated in zip(self._to_compare(first, batch["index"]), (False, True), strict=True):
                    distance.update(extractor(images).values, generated)
        result = metrics.compute(accelerator)
        if args.num_distance_images:
            result["frechet_8x8_pixels"] = distance.compute(accelerator)
            result["num_distance_images"] = min(args.num_distance_images, int(result["num_images"]))
        return result, {"samples": self.samples()} if accelerator.is_main_process else {}

    def _to_compare(self, inputs: dict[str, Tensor], indices: Tensor) -> tuple[Tensor, Tensor]:
        """Held-out images as the tokenizer decodes them, and a generated image of the class of each, as uint8."""
        tokens, labels = inputs["image_tokens"], inputs.get("class_labels")
        decoded = self.published_model().tokenizer.decode(tokens).decoded_pixel_values
        generated = self._generate(labels, indices[: len(tokens)].tolist(), "pt")
        return self.processor.postprocess(decoded, "pt"), generated

    def samples(self) -> Image.Image:
        """A sheet of samples, a row for each of some classes, always of the same seeds."""
        config, count = self.model.config, self.args.num_sample_images
        labels, row_labels, instead = None, None, None
        if config.num_classes:
            rows = -(-count // SHEET_COLUMNS)
            classes = [row * config.num_classes // rows for row in range(rows)]
            row_labels = [class_names(config)[number] for number in classes]
            instead = [f"class {number}" for number in classes]
            labels = torch.tensor(classes).repeat_interleave(SHEET_COLUMNS)[:count].to(self.accelerator.device)
        images: list[Image.Image] = []
        for first in range(0, count, self.args.eval_batch_size):
            numbers = range(first, min(first + self.args.eval_batch_size, count))
            images += self._generate(None if labels is None else labels[first : numbers.stop], numbers, "pil")
        return sample_sheet(images, row_labels=row_labels, columns=SHEET_COLUMNS, instead=instead)

    def _generate(self, labels: Tensor | None, numbers: Sequence[int], output_type: str) -> Any:
        """Images of given classes, each from random numbers of its own."""
        generators = [seeded_generator(self.args.seed, number) for number in numbers]
        output = self.published_model().generate(
            class_labels=labels,
            num_images=len(numbers),
            generator=generators,
            output_type=output_type,
            **self._sampling(),
        )
        return output.images

    def _sampling(self) -> dict[str, Any]:
        """The arguments of `generate` for the samples: the number of steps, and what differs from the defaults."""
        config, default = self.model.config, MaskGitSampling()
        sampling = self.args.sampling()
        # Guidance leads away from images of no class. A model learns these only if training drops classes.
        if not (config.num_classes and config.class_dropout > 0):
            sampling = dataclasses.replace(sampling, guidance_scale=1.0)
        changed = {name: value for name, value in vars(sampling).items() if value != getattr(default, name)}
        return {"num_steps": sampling.num_steps, **changed}

    # ------------------------------------------------------------------ publishing

    def card(self, folder: Path) -> ModelCard:
        """The card, with the measured numbers and samples."""
        with torch.no_grad():
            picture = (self.eval_pictures or {}).get("samples") or self.samples()
        picture.save(folder / SAMPLES_FILE)
        sampling = self._sampling()
        used = ", ".join(f"{name} {value}" for name, value in sampling.items())
        return card_of_run(
            self,
            self.args.tokens,
            picture=SAMPLES_FILE,
            picture_caption=f"Samples, not selected ({used}).",
            sampling=sampling,
        )


def lookup_tables(model: MaskGitModel) -> list[nn.Parameter]:
    """Embeddings that are no matrices of a product: decay would shrink the rows that a batch does not use."""
    transformer = model.transformer
    tables = [transformer.mask_embedding, transformer.position_embedding, transformer.class_embedding.weight]
    if not model.config.tie_word_embeddings:
        tables.append(transformer.embed_tokens.weight)
    return [table for table in tables if table is not None]
