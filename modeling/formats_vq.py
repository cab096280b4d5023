# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What pipelines return for programs that know no torch: NumPy arrays, or what JSON can hold."""

import base64
from io import BytesIO
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

OutputFormat = Literal["numpy", "json"]
FORMATS = ("numpy", "json")


def check_output_format(output_format: str | None) -> None:
    """Raises a `ValueError` that tells the formats if there is no such one."""
    if output_format not in (None, *FORMATS):
        raise ValueError(
            f'`output_format` must be "numpy" or "json", or None for torch and PIL, got {output_format!r}.'
        )


def to_format(value: Any, output_format: OutputFormat | None) -> Any:
    """Converts tensors and images, also those in a dictionary.

    Args:
        value: A tensor, a PIL image, or a dictionary of these and others.
        output_format: `"numpy"` makes arrays; those of images are 8-bit, (height, width, channels) or (height, width).
            `"json"` makes nested lists of tensors, and PNGs of images, as text `"data:image/png;base64,..."` that the
            image processor reads. None changes nothing.
    """
    if output_format is None:
        return value
    if isinstance(value, dict):
        return {name: to_format(each, output_format) for name, each in value.items()}
    if isinstance(value, torch.Tensor):
        # NumPy has no bfloat16.
        array = (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)
        return array if output_format == "numpy" else array.tolist()
    if isinstance(value, Image.Image):
        return np.asarray(value) if output_format == "numpy" else _data_uri(value)
    return value


def _data_uri(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


__all__ = ["FORMATS", "OutputFormat", "check_output_format", "to_format"]
