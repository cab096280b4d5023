# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Checks the arguments of `MaskGitModel.generate` and brings them to one shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from .class_names_maskgit import class_numbers
from .inpainting_maskgit import mask_of_pictures
from .masking_maskgit import draw_uniform

logger = logging.get_logger(__name__)

ClassLabels = int | str | Sequence[int | str] | torch.Tensor
Mask = torch.Tensor | np.ndarray | Image.Image | Sequence[Image.Image]


@dataclass
class Canvas:
    """The images that `generate` is filling in.

    Args:
        tokens: int64 (batch, h, w, groups). Ids count from 0 in each group. Hidden ones can be anything.
        mask: Boolean. Same shape as `tokens`, True where a token is hidden.
        class_labels: int64 (batch,). `num_classes` is the null class.
        guidance_scale: (batch,), on the CPU.
        pixel_mask: Boolean (batch, height, width), True where pixels are made anew; None without given images.
        generators: One for each image, or one for all.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    class_labels: torch.Tensor
    guidance_scale: torch.Tensor
    pixel_mask: torch.Tensor | None
    generators: list[torch.Generator] | torch.Generator | None

    def draw_uniform(self) -> torch.Tensor:
        """Draws numbers in [0, 1) for all tokens, hidden or not.

        So the numbers of an image do not depend on other images or on masks.
        """
        shape, device = tuple(self.tokens.shape), self.tokens.device
        if isinstance(self.generators, list):
            return torch.stack([draw_uniform(shape[1:], generator, device) for generator in self.generators])
        return draw_uniform(shape, self.generators, device)


def prepare_canvas(
    model: Any,
    class_labels: ClassLabels | None,
    num_images: int | None,
    guidance_scale: float | Sequence[float] | torch.Tensor,
    image_tokens: torch.Tensor | None,
    pixel_values: torch.Tensor | None,
    mask: Mask | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Canvas:
    """Checks the arguments of `generate` and expands each to all images.

    Args:
        model ([`MaskGitModel`]): The model, in eval mode.
        class_labels, num_images, guidance_scale, image_tokens, pixel_values, mask, generator: As for `generate`.

    Returns:
        [`Canvas`]: The images to fill in.

    Raises:
        ValueError: If the arguments do not fit the model or each other.
    """
    device = _execution_device(model)
    if image_tokens is not None and pixel_values is not None:
        raise ValueError("Pass `image_tokens` or `pixel_values`, not both.")
    if pixel_values is not None:
        image_tokens = model.encode(pixel_values.to(device))
    if (image_tokens is None) != (mask is None):
        raise ValueError(
            "A mask and the images that it is for (`image_tokens` or `pixel_values`) need each other. Pass both or "
            "neither. The mask is True where you want new tokens; `draw_mask(image_tokens.shape, 0.5)` makes a random "
            "one."
        )
    labels = None if class_labels is None else _to_tensor(class_labels, model.config)
    scale = torch.as_tensor(guidance_scale, dtype=torch.float32, device="cpu").reshape(-1)
    if labels is None and (scale != 1).any():
        raise ValueError(
            "`guidance_scale` has no effect without `class_labels`, because guidance leads away from images of no "
            "class. Pass `class_labels`, or leave `guidance_scale` at 1."
        )
    given: dict[str, torch.Tensor] = {"guidance_scale": scale}
    if labels is not None:
        given["class_labels"] = labels
    pixel_mask = None
    if image_tokens is not None and mask is not None:
        image_tokens, factor = image_tokens.to(device), model.config.vq_config.downsample_factor
        pixels = [side * factor for side in image_tokens.shape[1:3]]
        boolean = _to_boolean(mask, pixels).to(device)
        given["mask"] = _to_token_mask(boolean, image_tokens, factor)
        pixel_mask = _to_pixel_mask(boolean, given["mask"], pixels, factor)
        given["image_tokens"] = image_tokens
        if not given["mask"].any():
            logger.warning("`mask` is False everywhere, so nothing is made anew. Set it to True where you want that.")
    batch = _batch_size(num_images, {name: len(value) for name, value in given.items()})
    given = {name: value.expand(batch, *value.shape[1:]) for name, value in given.items()}
    if image_tokens is not None:
        hidden = given["mask"]
        tokens = model._to_local(given["image_tokens"], hidden)
    else:
        tokens = torch.zeros(
            (batch, *model.config.grid_size, model.config.num_groups), dtype=torch.long, device=device
        )
        hidden = torch.ones_like(tokens, dtype=torch.bool)
    if generator is not None and not isinstance(generator, torch.Generator):
        generator = list(generator)
        if len(generator) != batch:
            raise ValueError(
                f"`generator` must be a single generator, or one for each of the {batch} images, got a list of "
                f"{len(generator)}."
            )
    return Canvas(
        tokens=tokens,
        mask=hidden.reshape(tokens.shape),
        class_labels=model._to_labels(given["class_labels"].to(device) if labels is not None else None, batch, device),
        guidance_scale=given["guidance_scale"],
        pixel_mask=None if pixel_mask is None else pixel_mask.expand(batch, -1, -1),
        generators=generator,
    )


def _to_tensor(class_labels: ClassLabels, config: Any) -> torch.Tensor:
    """Class labels of any form as a tensor (batch,)."""
    if isinstance(class_labels, np.ndarray):
        class_labels = class_labels.tolist()
    if isinstance(class_labels, str):
        class_labels = [class_labels]
    if isinstance(class_labels, Sequence) and any(isinstance(label, str) for label in class_labels):
        class_labels = class_numbers(class_labels, config)
    return torch.as_tensor(class_labels).reshape(-1)


def _to_boolean(mask: Mask, pixels: Sequence[int]) -> torch.Tensor:
    """A mask as a tensor of booleans. Pictures are brought to the size of the images, height and width."""
    pictures = [mask] if isinstance(mask, Image.Image) else mask
    if isinstance(pictures, Sequence) and pictures and all(isinstance(each, Image.Image) for each in pictures):
        return mask_of_pictures(pictures, *pixels)
    return torch.as_tensor(mask)


def _batch_size(num_images: int | None, sizes: dict[str, int]) -> int:
    """Returns the number of images on which all arguments agree. A single entry serves all images."""
    if num_images is not None and num_images < 1:
        raise ValueError(f"`num_images` must be at least 1, got {num_images}.")
    batch = num_images or max(sizes.values(), default=1)
    wrong = {name: size for name, size in sizes.items() if size not in (1, batch)}
    if wrong or batch == 0:
        counts = ", ".join(f"{size} in `{name}`" for name, size in sizes.items())
        raise ValueError(
            f"There must be one entry for each of the {batch} images, or a single one for all, got {counts}."
        )
    return batch


def _to_token_mask(mask: torch.Tensor, image_tokens: torch.Tensor, factor: int) -> torch.Tensor:
    """Turns a mask of cells, tokens or pixels into a mask of tokens, (batch, h, w) or (batch, h, w, groups)."""
    height, width, *groups = image_tokens.shape[1:]
    shape = tuple(mask.shape)
    if mask.dtype != torch.bool:
        raise ValueError(f"`mask` must be booleans, True where new tokens are wanted, got {mask.dtype}.")
    if mask.ndim == 2:
        mask = mask.unsqueeze(0)
    if mask.shape[1:] == image_tokens.shape[1:]:
        return mask
    if mask.shape[1:] == (height * factor, width * factor):
        mask = mask.unflatten(2, (width, factor)).unflatten(1, (height, factor)).any(4).any(2)
    if mask.shape[1:] != (height, width):
        raise ValueError(
            f"`mask` must have the shape ({height}, {width}) or (batch, {height}, {width}) of the grid of tokens, or "
            f"({height * factor}, {width * factor}) of the pixels, got {shape}."
        )
    return mask.unsqueeze(-1).expand(*mask.shape, *groups) if groups else mask


def _to_pixel_mask(mask: torch.Tensor, token_mask: torch.Tensor, pixels: Sequence[int], factor: int) -> torch.Tensor:
    """Turns a mask of cells, tokens or pixels into a mask of pixels, (batch, height, width)."""
    if [*mask.shape[-2:]] == [*pixels] and mask.ndim <= 3:
        return mask.reshape(-1, *pixels)
    cells = token_mask if token_mask.ndim == 3 else token_mask.any(-1)
    return cells.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def _execution_device(model: Any) -> torch.device:
    """Where the model computes. The weights that accelerate has offloaded say "meta", but their hooks know."""
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return model.device


__all__ = ["Canvas", "ClassLabels", "Mask", "prepare_canvas"]
