# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The range of a model's pixels, which its configuration says: [-1, 1] or [0, 1]."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

SIGNED = (-1.0, 1.0)
"""The default: black is -1, white is 1."""
UNIT = (0.0, 1.0)
"""The range of errors and metrics, whatever that of the model: black is 0, white is 1."""
_MAX_SCALED = 16  # no pixels of any usual scale are above, and only nearly black 8-bit images are below


def check_pixel_range(pixel_range: Sequence[float]) -> None:
    """Makes sure that a range is one of the two that there are.

    Args:
        pixel_range: The values of black and of white.

    Raises:
        `ValueError`: for any other range.
    """
    if tuple(pixel_range) not in (SIGNED, UNIT):
        raise ValueError(f"`pixel_range` must be {list(SIGNED)} or {list(UNIT)}, got {pixel_range!r}.")


def require_floating_point(pixel_values: torch.Tensor, pixel_range: Sequence[float]) -> None:
    """Raises a `ValueError` that tells the range if pixels are no floating-point numbers."""
    if not pixel_values.is_floating_point():
        low, high = pixel_range
        raise ValueError(
            f"`pixel_values` must be floating-point numbers in [{low:g}, {high:g}], got {pixel_values.dtype}. "
            "VQImageProcessor converts images."
        )


def refuse_8_bit_values(pixel_values: torch.Tensor, pixel_range: Sequence[float], training: bool) -> None:
    """Raises a `ValueError` if floating-point pixels have the values 0 to 255 of an image that was not scaled.

    No other pixels are that far on one side of zero: those with ImageNet's mean and deviation end at 2.7. Training on
    an accelerator does not check, because reading the values would make it wait in every step; neither do graphs.

    Args:
        pixel_values: Any shape.
        pixel_range: The range that is expected.
        training: Whether the model is in training mode.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or pixel_values.is_meta or not pixel_values.numel():
        return
    if pixel_values.device.type != "cpu" and (training or torch.cuda.is_current_stream_capturing()):
        return
    smallest, largest = (end.item() for end in pixel_values.detach().aminmax())
    if smallest >= 0 and _MAX_SCALED < largest <= 255:
        low, high = pixel_range
        raise ValueError(
            f"`pixel_values` must be in [{low:g}, {high:g}], got values of {smallest:g} to {largest:g}, as of 8-bit "
            "images. VQImageProcessor scales images."
        )


def convert_pixels(pixel_values: torch.Tensor, source: Sequence[float], target: Sequence[float]) -> torch.Tensor:
    """Pixels of one range to the same pixels in another; values beyond the range stay beyond it.

    Args:
        pixel_values: Any shape, in `source`.
        source: Their range.
        target: The range that is wanted.

    Returns:
        `torch.FloatTensor`: the same shape and dtype; the very same tensor if the two ranges are equal.
    """
    if tuple(source) == tuple(target):
        return pixel_values
    (low, high), (new_low, new_high) = source, target
    return (pixel_values - low) * ((new_high - new_low) / (high - low)) + new_low


def pixel_range_of(image_processor: Any) -> list[float] | None:
    """The range of the pixels that an image processor makes.

    Args:
        image_processor ([`VQImageProcessor`]): Or any other with the usual fields of transformers.

    Returns:
        `list[float]`, or `None` if the processor normalizes to neither of the two ranges.
    """
    white = 255 * image_processor.rescale_factor if image_processor.do_rescale else 255.0
    mean, std = (image_processor.image_mean, image_processor.image_std) if image_processor.do_normalize else (0.0, 1.0)
    ends = (np.array([[0.0], [white]]) - np.atleast_1d(mean)) / np.atleast_1d(std)
    for known in (SIGNED, UNIT):
        if np.allclose(ends.T, known, rtol=0, atol=1e-6):
            return list(known)
    return None


def require_pixel_range(image_processor: Any, config: Any, name: Any = None) -> None:
    """Makes sure that an image processor makes the pixels that a model takes.

    A processor that normalizes to neither of the two ranges, with ImageNet's mean for example, causes a warning.

    Args:
        image_processor ([`VQImageProcessor`]): The processor.
        config ([`VQConfig`], [`VQImageClassificationConfig`] or [`MaskGitConfig`]): The model's configuration.
        name: What to call the model in the message.

    Raises:
        `ValueError`: if the configuration says the other range.
    """
    expected, found = getattr(config, "vq_config", config).pixel_range, pixel_range_of(image_processor)
    whose = "" if name is None else f" of '{name}'"
    if found is None:
        logger.warning(
            f"The image processor{whose} normalizes pixels to a range of its own, but the model's configuration says "
            f"`pixel_range={expected}`. Errors and generated images are right in that range alone. "
            "`VQImageProcessor.for_config(model.config)` makes the processor that fits."
        )
    elif found != expected:
        raise ValueError(
            f"The image processor{whose} makes pixels in {found}, but the model's configuration says "
            f"`pixel_range={expected}`. Take `VQImageProcessor.for_config(model.config)`, or set `pixel_range` in the "
            "configuration to the range that the weights were trained with."
        )


__all__ = [
    "SIGNED",
    "UNIT",
    "check_pixel_range",
    "convert_pixels",
    "pixel_range_of",
    "refuse_8_bit_values",
    "require_floating_point",
    "require_pixel_range",
]
