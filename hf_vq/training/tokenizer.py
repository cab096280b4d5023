"""Trains a `VQModel` as a tokenizer: reconstruction and commitment, optionally perceptual and adversarial losses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor, nn

from hf_vq.kinds import PICTURE_FILE
from hf_vq.losses import (
    AdversarialKind,
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    generator_loss,
    hinge_d_loss,
    nonsaturating_d_loss,
)
from hf_vq.metrics.reconstruction import TokenizerMetrics
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.plots.codebook import usage_histogram
from hf_vq.plots.images import reconstruction_grid
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.image_trainer import ImageTrainer
from hf_vq.training.networks import MODEL
from hf_vq.training.optimization import parameter_groups
from hf_vq.training.order import Batch
from hf_vq.training.publishing import card_of_run

DISCRIMINATOR = "discriminator"


class TokenizerTrainer(ImageTrainer):
    """Trains a tokenizer.

    The loss is `reconstruction + commitment_weight * commitment`, optionally with a perceptual and an adversarial
    loss. The encoder runs once per batch: the adversarial loss uses the same reconstructions.

    Args:
        model: The tokenizer; its configuration says the reconstruction loss and the weight of the commitment.
        args: The settings.
        train_dataset: Map-style, with items `{"pixel_values": (channels, height, width)}` in the configuration's
            `pixel_range`, or a stream.
        eval_dataset: Held-out images, likewise; without it nothing is measured.
        image_processor: Saved beside the model.

    Raises:
        ValueError: The data or the image processor have another range of pixels than the model.

    Example:

        >>> trainer = TokenizerTrainer(model, TokenizerTrainingArguments(output_dir="out"), train_images, test_images)
        >>> metrics = trainer.train()
        >>> trainer.close()
    """

    args: TokenizerTrainingArguments
    model: VQModel
    progress_metrics = ("loss", "usage", "perplexity")

    def __init__(
        self,
        model: VQModel,
        args: TokenizerTrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        image_processor: Any = None,
    ) -> None:
        super().__init__(model, args, train_dataset, eval_dataset, image_processor)
        self.add_model()
        self.discriminator: nn.Module | None = None
        if args.adversarial_weight > 0:
            self.discriminator = PatchDiscriminator(
                model.config.num_channels,
                args.discriminator_channels,
                args.discriminator_layers,
                model.config.pixel_range,
            )
            self.networks.add(
                DISCRIMINATOR,
                self.discriminator,
                parameter_groups(self.discriminator, args.weight_decay),
                args.discriminator_learning_rate or args.learning_rate,
            )
            if args.torch_compile and args.adaptive_adversarial_weight:
                # Its gradients go through compiled graphs more than once.
                torch._functorch.config.donated_buffer = False
        self.adversarial_kind: AdversarialKind = "hinge" if args.discriminator_loss == "hinge" else "nonsaturating"
        self.perceptual_loss: nn.Module | None = None
        if args.perceptual_weight > 0:
            self.perceptual_loss = PerceptualLoss(pixel_range=model.config.pixel_range).to(self.accelerator.device)
        self._warn_of_few_images()

    def learning_networks(self) -> list[str]:
        """The model and, once it has started, the discriminator."""
        adversarial = self.discriminator is not None and self.step >= self.args.adversarial_start
        return [MODEL, DISCRIMINATOR] if adversarial else [MODEL]

    def backward_pass(self, batch: Batch, shared: bool, micro_batches: int) -> dict[str, Tensor]:
        """Forward and backward of the model, then of the discriminator on the same reconstructions."""
        pixel_values = self.to_device(batch)
        adversarial = DISCRIMINATOR in self.learning_networks()
        with self.networks.gradients_shared(MODEL, shared):
            reconstruction, terms = self._model_backward(pixel_values, adversarial, micro_batches)
        if adversarial:
            with self.networks.gradients_shared(DISCRIMINATOR, shared):
                terms |= self._discriminator_backward(pixel_values, reconstruction, micro_batches)
        return terms

    def _model_backward(
        self, pixel_values: Tensor, adversarial: bool, micro_batches: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward of the model; returns its reconstructions and the terms of its loss."""
        args = self.args
        out, replaced = self.forward_pass(pixel_values)
        terms = {
            name: getattr(out, name)
            for name in ("reconstruction_loss", "commitment_loss", "perplexity", "usage", "quantization_error")
            if getattr(out, name) is not None  # under `no_vq` there are no codes to tell of
        }
        terms["replaced_codes"] = replaced
        loss, task = out.loss, out.reconstruction_loss
        reconstruction = out.decoded_pixel_values
        if self.perceptual_loss is not None:
            with self.accelerator.autocast():
                perceptual = self.perceptual_loss(reconstruction, pixel_values).float()
            terms["perceptual_loss"] = perceptual
            task = task + args.perceptual_weight * perceptual
            loss = loss + args.perceptual_weight * perceptual
        if adversarial:
            assert self.discriminator is not None
            # Frozen and not through DDP: this pass must leave no gradients in the discriminator, and no hooks waiting.
            self.discriminator.requires_grad_(False)
            deception = generator_loss(self.discriminator(reconstruction).float(), self.adversarial_kind)
            self.discriminator.requires_grad_(True)
            weight = loss.new_full((), args.adversarial_weight)
            if args.adaptive_adversarial_weight:
                weight = weight * adaptive_weight(task, deception, output_layer_weight(self.model))
            terms |= {"generator_loss": deception, "adversarial_weight": weight}
            loss = loss + weight * deception
        terms["loss"] = loss
        self.accelerator.backward(loss / micro_batches)
        return reconstruction.detach(), terms

    def _discriminator_backward(self, real: Tensor, fake: Tensor, micro_batches: int) -> dict[str, Tensor]:
        """Forward and backward of the discriminator on images and their (detached) reconstructions."""
        logits_real, logits_fake = self.networks.wrapped[DISCRIMINATOR](torch.cat([real, fake])).float().chunk(2)
        criterion = hinge_d_loss if self.adversarial_kind == "hinge" else nonsaturating_d_loss
        loss = criterion(logits_real, logits_fake)
        self.accelerator.backward(loss / micro_batches)
        return {"discriminator_loss": loss, "logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}

    def task_loss(self, batch: Batch) -> Tensor:
        """Reconstruction and perceptual loss; the discriminator's, which changes under way, is left out."""
        pixel_values = self.to_device(batch)
        # The class's own forward: Accelerate's autocast is on the instance.
        out = VQModel.forward(self.model, pixel_values)
        assert out.reconstruction_loss is not None
        if self.perceptual_loss is None:
            return out.reconstruction_loss
        perceptual = self.perceptual_loss(out.decoded_pixel_values, pixel_values)
        return out.reconstruction_loss + self.args.perceptual_weight * perceptual

    def evaluation(self) -> tuple[dict[str, float], dict[str, Image.Image]]:
        """Reconstruction quality and use of the codes on the held-out images, in float32."""
        args, accelerator = self.args, self.accelerator
        model = self.published_model()
        metrics = TokenizerMetrics(model.config.num_codes, model.config.pixel_range)
        originals: list[Tensor] = []
        reconstructions: list[Tensor] = []
        for batch in self.held_out_batches(self.eval_dataset):
            pixel_values = self.to_device(batch)
            # The class's own forward: Accelerate's autocast is on the instance, and users load the model without it.
            out = type(model).forward(model, pixel_values)
            metrics.update(pixel_values, out.decoded_pixel_values, out.image_tokens, out.quantization_error)
            missing = args.num_grid_images - sum(len(images) for images in originals)
            if accelerator.is_main_process and missing > 0:
                originals.append(pixel_values[:missing].cpu())
                reconstructions.append(out.decoded_pixel_values[:missing].cpu())
        result = metrics.compute(accelerator)
        counts = metrics.code_counts(accelerator)
        pictures = {}
        if accelerator.is_main_process:
            if originals:
                pictures["reconstructions"] = reconstruction_grid(
                    torch.cat(originals),
                    {"reconstruction": torch.cat(reconstructions)},
                    pixel_range=model.config.pixel_range,
                    max_images=args.num_grid_images,
                )
            pictures["usage"] = usage_histogram(counts)
        return result, pictures

    def card(self, folder: Path) -> ModelCard:
        """The card, with the measured numbers and a picture of reconstructions."""
        args = self.args
        picture = (self.eval_pictures or {}).get("reconstructions")
        if picture is not None:
            picture.save(folder / PICTURE_FILE)
        return card_of_run(
            self,
            args.dataset,
            picture=None if picture is None else PICTURE_FILE,
            picture_caption="Above, held-out images; below, their reconstructions.",
            methods=[*(["lpips"] if args.perceptual_weight else []), *(["vqgan"] if args.adversarial_weight else [])],
        )

    def _warn_of_few_images(self) -> None:
        images, config = self.data.num_images, self.model.config
        if images is None:
            return
        vectors = images * (config.image_size // config.downsample_factor) ** 2 * config.num_groups
        if vectors < config.num_codes:
            warnings.warn(
                f"The training set has {images:,} images, which make {vectors:,} vectors to quantize, fewer than the "
                f"{config.num_codes:,} codes: codes will stay unused or stand for single vectors. Use more images, or "
                f"a smaller num_codes.",
                stacklevel=3,
            )


def output_layer_weight(model: VQModel) -> Tensor:
    """The weight of the decoder's last convolution, where gradients of losses on pixels are compared."""
    layers = [module for module in model.decoder.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    return layers[-1].weight
