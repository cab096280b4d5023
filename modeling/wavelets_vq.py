# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Haar wavelets of patches, which some networks read and write in place of pixels."""

import torch


def to_wavelets(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Haar wavelets of patches.

    A step halves both sides. Of each 2 x 2 pixels it keeps the mean, and the differences of rows, of columns and of
    diagonals, each divided by 4. The next step takes all four of them.

    Args:
        pixels: (batch, channels, height, width); `patch_size` divides the sides.
        patch_size: Side of a patch, a power of two. 1 changes nothing.

    Returns:
        `torch.Tensor`: (batch, channels * patch_size^2, height / patch_size, width / patch_size).
    """
    while patch_size > 1:
        top, bottom = pixels[..., ::2, :], pixels[..., 1::2, :]
        sums, differences = (top + bottom) / 2, (top - bottom) / 2
        parts = [(half[..., ::2] + sign * half[..., 1::2]) / 2 for sign in (1, -1) for half in (sums, differences)]
        pixels, patch_size = torch.cat(parts, 1), patch_size // 2
    return pixels


def from_wavelets(wavelets: torch.Tensor, patch_size: int) -> torch.Tensor:
    """The inverse of [`to_wavelets`]."""
    while patch_size > 1:
        sums, rows, columns, diagonals = wavelets.chunk(4, 1)
        top = torch.stack([sums + rows + columns + diagonals, sums + rows - columns - diagonals], -1).flatten(-2)
        bottom = torch.stack([sums - rows + columns - diagonals, sums - rows - columns + diagonals], -1).flatten(-2)
        wavelets, patch_size = torch.stack([top, bottom], -2).flatten(-3, -2), patch_size // 2
    return wavelets


__all__ = ["from_wavelets", "to_wavelets"]
