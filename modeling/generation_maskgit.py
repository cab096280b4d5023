# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""How a [`MaskGitModel`] makes images: from hidden tokens, step by step.

Every step guesses hidden tokens and keeps some of the guesses. The confidence sampler guesses all and keeps those that
are surest; the Halton sampler goes through the grid in a fixed order that spreads evenly, and keeps every guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers.utils import ModelOutput

from .canvas_maskgit import Canvas, prepare_canvas
from .image_processing_vq import VQImageProcessor
from .masking_maskgit import MaskSchedule, masked_counts
from .sampling_maskgit import (
    GuidanceSchedule,
    draw_tokens,
    guidance_scales,
    gumbel,
    halton_ranks,
    ranks,
    sampling_probabilities,
)

_CHOICE_TEMPERATURE = 4.5  # MaskGIT's
_GUIDANCE_POWER = 3.0  # MaskBit's


@dataclass(frozen=True)
class _Options:
    """The arguments of `generate` that all images share."""

    num_steps: int
    schedule: MaskSchedule
    sampler: Literal["confidence", "halton"]
    guidance_schedule: GuidanceSchedule
    guidance_power: float | None
    temperature: float | tuple[float, float]
    choice_temperature: float | None
    top_k: int | None
    top_p: float | None

    def __post_init__(self) -> None:
        if self.sampler not in ("confidence", "halton"):
            raise ValueError(f'`sampler` must be "confidence" or "halton", got {self.sampler!r}.')
        if self.sampler == "halton" and self.choice_temperature is not None:
            raise ValueError('`choice_temperature` has no effect with `sampler="halton"`, which keeps all guesses.')
        if self.choice_temperature is not None and not self.choice_temperature >= 0:
            raise ValueError(f"`choice_temperature` must be at least 0, got {self.choice_temperature}.")
        if self.guidance_schedule != "power_cosine" and self.guidance_power is not None:
            raise ValueError('`guidance_power` has no effect without `guidance_schedule="power_cosine"`.')
        if not min(self.temperatures) > 0:
            raise ValueError(
                f"`temperature` must be above 0, got {self.temperature}. `top_k=1` takes the likeliest code."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be in (0, 1], got {self.top_p}.")

    @property
    def temperatures(self) -> list[float]:
        """One for each step."""
        pair = self.temperature if isinstance(self.temperature, (tuple, list)) else (self.temperature,) * 2
        return torch.linspace(*pair, max(self.num_steps, 1)).tolist()


@dataclass
class MaskGitGenerateOutput(ModelOutput):
    r"""What [`MaskGitModel.generate`] returns.

    Args:
        images (`list[PIL.Image.Image]` or `torch.ByteTensor`):
            One picture for each image, or with `output_type="pt"` (num_images, channels, height, width), 0 to 255.
        image_tokens (`torch.LongTensor`): Their tokens, (num_images, h, w), or (..., groups) with more than one group.
        intermediates (`torch.LongTensor`, *optional*):
            With `return_intermediates=True`: the tokens known after each step, (num_steps, *shape of image_tokens);
            -1 where there is none yet. The last one is `image_tokens`.
    """

    images: Any = None
    image_tokens: torch.Tensor | None = None
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

    @torch.no_grad()
    def generate(
        self,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_images: int | None = None,
        num_steps: int = 8,
        guidance_scale: float | Sequence[float] | torch.Tensor = 1.0,
        schedule: MaskSchedule = "arccos",
        sampler: Literal["confidence", "halton"] = "confidence",
        *,
        guidance_schedule: GuidanceSchedule = "constant",
        guidance_power: float | None = None,
        temperature: float | tuple[float, float] = 1.0,
        choice_temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        image_tokens: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: Literal["pil", "pt"] = "pil",
        return_intermediates: bool = False,
    ) -> MaskGitGenerateOutput:
        """Makes images, or fills in parts of given ones. Runs in eval mode.

        What is given for each image (labels, guidance, tokens, masks) holds one entry for all images or `num_images`.

        Guidance makes logits `u + s (c - u)` from those with the class (c) and those with the null class (u), as
        transformers and diffusers do; s = 1 turns it off. Projects that write `c + w (c - u)` or `(1 + w) c - w u`
        (MaskBit, TiTok, Halton-MaskGIT) mean s = 1 + w; LlamaGen and RAR mean the same s.

        Args:
            class_labels (`int`, `list[int]` or `torch.LongTensor`, *optional*):
                In [0, num_classes); -1, or no labels at all, for images of no class.
            num_images (`int`, *optional*): By default as many as there are labels, images or masks, else 1.
            num_steps (`int`, defaults to 8): Forwards of the transformer, from 1 to the number of tokens of an image.
            guidance_scale (`float` or one for each image, defaults to 1.0): s above; needs class labels.
            schedule (`"arccos"`, `"cosine"`, `"linear"` or `"square"`):
                How the hidden share falls, see [`mask_ratio`].
            sampler (`"confidence"` or `"halton"`):
                `"confidence"` (MaskGIT): keep the guesses of the highest log-probability plus noise. `"halton"`
                (Halton-MaskGIT): go through the cells in the order of the Halton sequence, with more than one group
                first through all tokens of the first group.
            guidance_schedule (`"constant"`, `"linear"` or `"power_cosine"`):
                With r = step / num_steps from 0 on, s becomes 1 + (s - 1) f(r) with f = 1, r, or
                (1 - cos(pi r^power)) / 2, MaskBit's.
            guidance_power (`float`, *optional*): The power, above 0, of `"power_cosine"` alone; 3 by default.
            temperature (`float` or a pair, defaults to 1.0):
                Divides logits, so less than 1 sharpens; above 0. A pair gives the first and the last step's.
                Halton-MaskGIT multiplies instead: its 1 -> 1.2 is (1.0, 0.83).
            choice_temperature (`float`, *optional*):
                `"confidence"` alone: weight of the Gumbel noise on the log-probabilities, at least 0; falls linearly
                to 0 at the last step. 4.5 by default, MaskGIT's; MaskBit takes 7.8, TiTok 1.
            top_k (`int`, *optional*): Draw among this many codes of the highest probability (more, if some are equal).
            top_p (`float`, *optional*): Draw among the fewest codes whose probabilities sum up to it, in (0, 1].
            image_tokens (`torch.LongTensor`, *optional*):
                Given images, for inpainting, outpainting and variations; needs a mask. (batch, h, w), or (...,
                groups) with more than one group. Where hidden any number will do. With rotary positions grids may have
                any size.
            pixel_values (`torch.FloatTensor`, *optional*): The same as images, (batch, channels, height, width).
            mask (`torch.BoolTensor`, *optional*):
                True where new tokens are wanted; all others stay as they are. (h, w) for all images or (batch, h, w),
                of cells or of pixels: a cell is renewed if any of its pixels is. Or the shape of `image_tokens`.
                [`draw_mask`] makes random ones, for variations.
            generator (`torch.Generator` or a list of them, *optional*):
                Source of the randomness. With one for each image, an image does not depend on the others.
            output_type (`"pil"` or `"pt"`, defaults to `"pil"`): Kind of `images`.
            return_intermediates (`bool`, defaults to `False`): Whether to return the tokens after each step.

        Returns:
            [`MaskGitGenerateOutput`]: images and tokens.

        Raises:
            `ValueError`: for labels out of range, wrong shapes, numbers of images that disagree, `num_steps` out of
                range, unknown names, and for arguments that would have no effect.
        """
        options = _Options(
            num_steps,
            schedule,
            sampler,
            guidance_schedule,
            guidance_power,
            temperature,
            choice_temperature,
            top_k,
            top_p,
        )
        if output_type not in ("pil", "pt"):
            raise ValueError(f'`output_type` must be "pil" or "pt", got {output_type!r}.')
        was_training = self.training
        self.eval()
        try:
            canvas = prepare_canvas(
                self, class_labels, num_images, guidance_scale, image_tokens, pixel_values, mask, generator
            )
            intermediates = self._fill(canvas, options, return_intermediates)
            image_tokens = self._to_global(canvas.tokens)
            pixel_values = self.tokenizer.decode(image_tokens).decoded_pixel_values
        finally:
            self.train(was_training)
        processor = VQImageProcessor(num_channels=self.config.vq_config.num_channels)
        return MaskGitGenerateOutput(
            images=processor.postprocess(pixel_values, output_type),
            image_tokens=image_tokens,
            intermediates=torch.stack(intermediates) if return_intermediates else None,
        )

    def _fill(self, canvas: Canvas, options: _Options, return_intermediates: bool) -> list[torch.Tensor]:
        """Fills the canvas in place."""
        num_steps, num_tokens = options.num_steps, canvas.tokens[0].numel()
        if not 1 <= num_steps <= num_tokens:
            raise ValueError(f"`num_steps` must be from 1 to {num_tokens}, the tokens of an image, got {num_steps}.")
        power = _GUIDANCE_POWER if options.guidance_power is None else options.guidance_power
        scales = guidance_scales(canvas.guidance_scale, num_steps, options.guidance_schedule, power)
        # How many are hidden is known beforehand: no step has to ask the accelerator.
        total = canvas.mask.flatten(1).sum(1).cpu()
        left = torch.tensor([masked_counts(count, num_steps, options.schedule) for count in total.tolist()]).T
        turns = halton_ranks(canvas.mask) if options.sampler == "halton" else None
        intermediates = []
        before = total
        for step, temperature in enumerate(options.temperatures):
            after = _per_image(left[step], canvas.mask)
            guesses = canvas.mask
            num_guesses = before
            if turns is not None:
                guesses = guesses & (turns < _per_image(total - left[step], canvas.mask))
                num_guesses = before - left[step]
            most = int(num_guesses.max())
            if most > 0:  # masks with fewer tokens than steps are filled early
                log_probabilities = self._guess(canvas, guesses, most, scales[step], temperature, options)
                if turns is not None:
                    canvas.mask = canvas.mask & ~guesses
                else:
                    weight = _CHOICE_TEMPERATURE if options.choice_temperature is None else options.choice_temperature
                    weight = weight * (1 - (step + 1) / num_steps)
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
        options: _Options,
    ) -> torch.Tensor:
        """Draws the tokens where `guesses` is True into the canvas; `most` is the largest number of them in an image.

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
        # The head works on the cells that need it, and on the rest of the fullest image's number.
        num_cells = min(most, height * width)
        cells = guesses.any(-1).flatten(1).int().argsort(dim=1, descending=True, stable=True)[:, :num_cells]

        def at_cells(values: torch.Tensor) -> torch.Tensor:
            return values.gather(1, cells.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

        if guided:
            # The head is affine, so that guiding its input guides the logits: one head instead of two.
            conditional, unconditional = (at_cells(states).float() for states in hidden_states.chunk(2))
            strength = scales.to(conditional.device)[:, None, None] - 1
            states = conditional + strength * (conditional - unconditional)
        else:
            states = at_cells(hidden_states)
        logits = self.head(states.to(hidden_states.dtype)).view(batch, num_cells, groups, -1)
        probabilities = sampling_probabilities(logits, temperature, options.top_k, options.top_p)
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
