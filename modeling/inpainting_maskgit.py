# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Inpainting with pictures: masks that are images, and pixels that come back untouched."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_utils import get_image_size

from .image_processing_vq import VQImageProcessor
from .opening_vq import upright

_WHITE = 0.5  # of [0, 1]: what is lighter is made anew


def read_image_and_mask(image: Any, mask: Any, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads an image and its mask, and brings both to the model's size in the same way.

    Args:
        image: A path, a URL, a PIL image, an array or a tensor.
        mask: Likewise, white (or True) where the image is made anew, of the image's size or of its aspect ratio.
        config: [`MaskGitConfig`]. Says the size and the range of the pixels.

    Returns:
        The image's `pixel_values` (1, channels, height, width), and the boolean `mask` (1, height, width) of its
        pixels.

    Raises:
        ValueError: If the aspect ratios differ, or if nothing is white in what the model sees of the mask.
    """
    vq_config = getattr(config, "vq_config", config)
    processor = VQImageProcessor.for_config(vq_config)
    gray = VQImageProcessor(image_size=vq_config.image_size, num_channels=1, do_normalize=False)
    image, mask = processor.fetch_images(image), gray.fetch_images(mask)
    _require_aspect_ratio(_size(mask), _size(image), "the image")
    white = gray(mask, return_tensors="pt").pixel_values[:, 0] > _WHITE
    _require_white(white)
    return processor(image, return_tensors="pt").pixel_values, white


def mask_of_pictures(pictures: Sequence[Image.Image], height: int, width: int) -> torch.Tensor:
    """Turns pictures into masks of pixels.

    Args:
        pictures: White where new tokens are wanted, of the aspect ratio of the images.
        height, width: Size of the images in pixels.

    Returns:
        Booleans (pictures, height, width).

    Raises:
        ValueError: For another aspect ratio, or if nothing is white.
    """
    for picture in pictures:
        _require_aspect_ratio(_size(picture), (height, width), "the images")
    gray = VQImageProcessor(
        size={"height": height, "width": width}, num_channels=1, do_center_crop=False, do_normalize=False
    )
    white = gray(list(pictures), return_tensors="pt").pixel_values[:, 0] > _WHITE
    for each in white:
        _require_white(each)
    return white


def keep_outside(given: torch.Tensor, made: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
    """Puts what was made anew into the given images.

    Outside the mask the given pixels stay as they are, to the bit. Inside, near the border, the made pixels take on
    the mean difference between given and made pixels on the other side of it, so that no seam is seen. No given
    pixel from inside the mask comes through.

    Args:
        given: (batch, channels, height, width).
        made: Same shape.
        mask: Boolean (batch, height, width), True where `made` is taken.
        width: Pixels from the border over which the difference fades, at least 1.

    Returns:
        The images, same shape, in float32.
    """
    given, made, mask = given.float(), made.float(), mask.unsqueeze(1)
    outside = (~mask).float()
    share = _box_mean(outside, width)
    difference = _box_mean(outside * (given - made), width) / share.clamp(min=1e-6)
    # At a straight border about half of the box lies outside.
    return torch.where(mask, made + (2 * share).clamp(max=1) * difference, given)


def _box_mean(images: torch.Tensor, radius: int) -> torch.Tensor:
    """The mean over a box of 2 radius + 1 pixels; at the edges, over what there is of it."""
    size, no_pad = 2 * radius + 1, {"stride": 1, "count_include_pad": False}
    rows = F.avg_pool2d(images, (size, 1), padding=(radius, 0), **no_pad)  # type: ignore[arg-type]
    return F.avg_pool2d(rows, (1, size), padding=(0, radius), **no_pad)  # type: ignore[arg-type]


def _size(picture: Any) -> tuple[int, int]:
    """Height and width of a PIL image, an array or a tensor."""
    if isinstance(picture, Image.Image):
        turned = upright(picture)
        return turned.height, turned.width
    array = np.asarray(picture)
    return array.shape if array.ndim == 2 else get_image_size(array)  # type: ignore[return-value]


def _require_aspect_ratio(mask: tuple[int, int], image: tuple[int, int], whose: str) -> None:
    """Compares the ratio of height and width. Rounding may cost less than a pixel."""
    if abs(mask[0] * image[1] - mask[1] * image[0]) >= max(*image, *mask):
        raise ValueError(
            f"The mask has another aspect ratio than {whose}: it has {mask[1]} x {mask[0]} pixels, {whose} "
            f"{image[1]} x {image[0]}. Make a mask of {image[1]} x {image[0]} pixels."
        )


def _require_white(white: torch.Tensor) -> None:
    if not white.any():
        height, width = white.shape[-2:]
        raise ValueError(
            "The mask is black where the model sees it, so nothing would be made anew. Make white what you want anew. "
            f"The model sees {width} x {height} pixels: thin lines vanish, and so do edges beyond its square."
        )


__all__ = ["keep_outside", "mask_of_pictures", "read_image_and_mask"]
