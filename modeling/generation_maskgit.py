# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""How a [`MaskGitModel`] makes images: from hidden tokens, step by step.

Every step guesses hidden tokens and keeps some of the guesses. The confidence sampler guesses all of them and keeps
the surest. The Halton sampler goes through the grid in a fixed order that spreads evenly, and keeps every guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import torch

from .canvas_maskgit import Canvas, ClassLabels, Mask, prepare_canvas
from .image_processing_vq import VQImageProcessor
from .inpainting_maskgit import keep_outside
from .masking_maskgit import masked_counts
from .options_maskgit import MaskGitSampling, takes_sampling_options
from .outputs_vq import ShortOutput
from .sampling_maskgit import (
    draw_tokens,
    guidance_scales,
    gumbel,
    halton_ranks,
    ranks,
    sampling_probabilities,
)

_CHOICE_TEMPERATURE = 4.5  # MaskGIT's
_GUIDANCE_POWER = 3.0  # MaskBit's


@dataclass(repr=False)
class MaskGitGenerateOutput(ShortOutput):
    r"""What [`MaskGitModel.generate`] returns.

    Args:
        images: A list of pictures, or with `output_type="pt"` a tensor (num_images, channels, height, width), 0 to
            255.
        image_tokens: int64. Their tokens, (num_images, h, w), or (..., groups) with more than one group.
        intermediates: int64. With `return_intermediates=True` the tokens that are known after each step, -1 where
            there is none yet: (num_steps, *shape of image_tokens). The last one is `image_tokens`.
    """

    images: Any = None
    image_tokens: torch.Tensor = None  # type: ignore[assignment]
    intermediates: torch.Tensor | None = None


class MaskGitGenerationMixin:
    """The method `generate` of a [`MaskGitModel`]."""

    if TYPE_CHECKING:
        config: Any
        eval: Any
        head: Any
        tokenizer: Any
        train: Any
        training: bool
        transformer: Any
        _to_global: Any

    @takes_sampling_options
    @torch.no_grad()
    def generate(
        self,
        class_labels: ClassLabels | None = None,
        num_images: int | None = None,
        *,
        image_tokens: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        mask: Mask | None = None,
        keep_pixels: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: Literal["pil", "pt"] = "pil",
        return_intermediates: bool = False,
        sampling: MaskGitSampling | None = None,
        **options: Any,
    ) -> MaskGitGenerateOutput:
        """Makes images, or fills in parts of given ones. Runs in eval mode.

        Labels, guidance scales, tokens and masks hold one entry for each image, or a single one for all images.

        Guidance makes logits `u + s (c - u)` from those with the class (c) and those with the null class (u), as
        transformers and diffusers do; s = 1 turns it off. Projects that write `c + w (c - u)` or `(1 + w) c - w u`
        (MaskBit, TiTok, Halton-MaskGIT) mean s = 1 + w; LlamaGen and RAR mean the same s.

        Args:
            class_labels: Numbers in [0, num_classes) or names of the configuration's `id2label`; -1, or no labels at
                all, for images of no class. A tensor is int64.
            num_images: By default as many as there are labels, images or masks, else 1.
            image_tokens: int64. Given images, for inpainting, outpainting and variations; they need a mask. Their
                shape is (batch, h, w), or (..., groups) with more than one group. Hidden tokens may have any value.
                With rotary positions grids may have any size.
            pixel_values: The same as images, (batch, channels, height, width) in the tokenizer's `pixel_range`.
            mask: Boolean. True where new tokens are wanted; all others stay as they are. The mask is of cells or of
                pixels, and its shape is (h, w) for all images or (batch, h, w); a cell is renewed if any of its pixels
                is. It may also have the shape of `image_tokens`. [`draw_mask`] makes random ones, for variations. A
                picture, or a list of them, is white where new tokens are wanted, and has the images' aspect ratio.
            keep_pixels: Whether pixels outside the mask come back as they are in `pixel_values`, and not as the
                tokenizer paints them. Inside the mask, colors near its border are adapted to those on the other side.
            generator: Source of the randomness. With one for each image, an image does not depend on the others.
            output_type: `"pil"` or `"pt"`. Kind of `images`.
            return_intermediates: Whether to return the tokens after each step.
            sampling ([`MaskGitSampling`], *optional*): How to sample: steps, guidance, temperatures and more.
            options: The fields of [`MaskGitSampling`] by keyword, as in `generate(3, num_steps=12, top_p=0.9)`. They
                take precedence over those of `sampling`.

        Returns:
            [`MaskGitGenerateOutput`]: images and tokens.

        Raises:
            `ValueError`: for labels out of range, names that no class has, wrong shapes, a picture of a mask with
                another aspect ratio or nothing white, numbers of images that disagree, `num_steps` out of range,
                unknown names, and for options that would have no effect.
            `TypeError`: for an argument that does not exist.
        """
        sampling = (sampling or MaskGitSampling()).with_options(options, known=signature(self.generate).parameters)
        if output_type not in ("pil", "pt"):
            raise ValueError(f'`output_type` must be "pil" or "pt", got {output_type!r}.')
        if keep_pixels and (pixel_values is None or mask is None):
            raise ValueError("`keep_pixels` needs the pixels that are kept: pass `pixel_values`, and a `mask`.")
        was_training = self.training
        self.eval()
        try:
            canvas = prepare_canvas(
                self, class_labels, num_images, sampling.guidance_scale, image_tokens, pixel_values, mask, generator
            )
            intermediates = self._fill(canvas, sampling, return_intermediates)
            image_tokens = self._to_global(canvas.tokens)
            decoded = self.tokenizer.decode(image_tokens).decoded_pixel_values
            if keep_pixels and pixel_values is not None and canvas.pixel_mask is not None:
                given = pixel_values.to(decoded.device).expand_as(decoded)
                decoded = keep_outside(given, decoded, canvas.pixel_mask, self.config.vq_config.downsample_factor)
        finally:
            self.train(was_training)
        processor = VQImageProcessor.for_config(self.config)
        return MaskGitGenerateOutput(
            images=processor.postprocess(decoded, output_type),
            image_tokens=image_tokens,
            intermediates=torch.stack(intermediates) if return_intermediates else None,
        )

    def _fill(self, canvas: Canvas, sampling: MaskGitSampling, return_intermediates: bool) -> list[torch.Tensor]:
        """Fills the canvas in place."""
        sampling.require_steps_within(canvas.tokens[0].numel())
        num_steps = sampling.num_steps
        power = _GUIDANCE_POWER if sampling.guidance_power is None else sampling.guidance_power
        choice_temperature = sampling.choice_temperature
        if choice_temperature is None:
            choice_temperature = _CHOICE_TEMPERATURE
        scales = guidance_scales(canvas.guidance_scale, num_steps, sampling.guidance_schedule, power)
        # The number of hidden tokens is known beforehand, so no step has to ask the accelerator.
        total = canvas.mask.flatten(1).sum(1).cpu()
        left = torch.tensor([masked_counts(count, num_steps, sampling.schedule) for count in total.tolist()]).T
        turns = halton_ranks(canvas.mask) if sampling.sampler == "halton" else None
        intermediates = []
        before = total
        for step, temperature in enumerate(sampling.temperature_of_steps):
            after = _per_image(left[step], canvas.mask)
            guesses = canvas.mask
            num_guesses = before
            if turns is not None:
                guesses = guesses & (turns < _per_image(total - left[step], canvas.mask))
                num_guesses = before - left[step]
            most = int(num_guesses.max())
            if most > 0:  # a mask with fewer tokens than steps is filled before the last step
                log_probabilities = self._guess(canvas, guesses, most, scales[step], temperature, sampling)
                if turns is not None:
                    canvas.mask = canvas.mask & ~guesses
                else:
                    weight = choice_temperature * (1 - (step + 1) / num_steps)
                    confidence = log_probabilities + weight * gumbel(canvas.draw_uniform())
                    confidence = confidence.masked_fill(~canvas.mask, torch.inf)
                    canvas.mask = canvas.mask & (ranks(confidence.flatten(1)).view(canvas.mask.shape) < after)
            before = left[step]
            if return_intermediates:
                tokens = self._to_global(canvas.tokens)
                intermediates.append(tokens.masked_fill(canvas.mask.view(tokens.shape), -1))
        return intermediates

    def _guess(
        self,
        canvas: Canvas,
        guesses: torch.Tensor,
        most: int,
        scales: torch.Tensor,
        temperature: float,
        sampling: MaskGitSampling,
    ) -> torch.Tensor:
        """Draws tokens into the canvas where `guesses` is True. `most` is the largest number of guesses in an image.

        Returns:
            `torch.FloatTensor`: (batch, h, w, groups), the logarithm of each new token's probability; 0 elsewhere.
        """
        batch, height, width, groups = canvas.tokens.shape
        guided = bool((scales != 1).any())
        copies = 2 if guided else 1
        labels = canvas.class_labels
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, self.config.num_classes)])
        hidden_states = self.transformer(
            canvas.tokens.repeat(copies, 1, 1, 1), canvas.mask.repeat(copies, 1, 1, 1), labels
        )
        # The head works on as many cells of each image as the image with the most guesses needs.
        num_cells = min(most, height * width)
        cells = guesses.any(-1).flatten(1).int().argsort(dim=1, descending=True, stable=True)[:, :num_cells]

        def at_cells(values: torch.Tensor) -> torch.Tensor:
            return values.gather(1, cells.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

        if guided:
            # The head is affine, so guiding its input guides the logits, and one head does instead of two.
            conditional, unconditional = (at_cells(states).float() for states in hidden_states.chunk(2))
            strength = scales.to(conditional.device)[:, None, None] - 1
            states = conditional + strength * (conditional - unconditional)
        else:
            states = at_cells(hidden_states)
        logits = self.head(states.to(hidden_states.dtype)).view(batch, num_cells, groups, -1)
        probabilities = sampling_probabilities(logits, temperature, sampling.top_k, sampling.top_p)
        drawn = draw_tokens(probabilities, at_cells(canvas.draw_uniform().flatten(1, 2)))
        log_probabilities = probabilities.gather(-1, drawn.unsqueeze(-1)).squeeze(-1).log()

        index = cells.unsqueeze(-1).expand(-1, -1, groups)
        tokens = canvas.tokens.flatten(1, 2).scatter(1, index, drawn).view(canvas.tokens.shape)
        canvas.tokens = torch.where(guesses, tokens, canvas.tokens)
        empty = torch.zeros((batch, height * width, groups), device=logits.device)
        return empty.scatter(1, index, log_probabilities).view(canvas.tokens.shape).masked_fill(~guesses, 0)


def _per_image(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(batch,) to (batch, 1, 1, 1), on the device of `like`."""
    return values.to(like.device)[:, None, None, None]


__all__ = ["MaskGitGenerateOutput", "MaskGitGenerationMixin"]
