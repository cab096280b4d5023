# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The norm layers in front of a quantizer: batch, group and instance norm, of sequences that may be padded."""

from __future__ import annotations

import math

import torch
from torch import nn

from .batch_norm_vq import BatchNorm1d, in_backward
from .distributed_vq import is_distributed
from .precision_vq import at_least_float32


def build_norm_layer(norm: str | None, feature_size: int) -> nn.Module | None:
    """The layer that `norm` names, "bn", "gn" or "in"; None for the other norms, which need none."""
    if norm == "bn":
        return BatchNorm1d(feature_size)
    if norm == "gn":
        return nn.GroupNorm(math.gcd(32, feature_size), feature_size, 1e-6, dtype=at_least_float32())
    return nn.InstanceNorm1d(feature_size) if norm == "in" else None


def apply_norm_layer(layer: nn.Module, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Normalizes vectors.

    Args:
        layer: what `build_norm_layer` made.
        x: `(batch, ..., features)`, float32 or better, zero where the mask is false.
        mask: bool `(batch, ...)`, the vectors that count.

    Returns:
        The shape and dtype of `x`. It is contiguous. What stands where the mask is false has no meaning.
    """
    weight = getattr(layer, "weight", None)
    vectors = x if weight is None else x.to(weight.dtype)
    if mask is not None and not isinstance(layer, BatchNorm1d):
        normed = _normalize_masked(layer, vectors, mask)
    elif mask is not None and layer.training and not x.is_meta:
        normed = _normalize_kept(layer, vectors, mask)
    else:
        normed = _normalize(layer, vectors)
    if layer.training and isinstance(layer, BatchNorm1d) and is_distributed() and not in_backward():
        layer.average_over_ranks()
    return normed.to(x.dtype)


def _normalize(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if x.numel():
        shape = x.shape
        x = layer(x.reshape(shape[0], -1, shape[-1]).transpose(1, 2)).transpose(1, 2)
        return x.contiguous().reshape(shape)
    if layer.training:  # its parameters stay part of the graph, for ranks with data wait for their gradients
        for parameter in layer.parameters():
            x = x + 0 * parameter.sum()
    return x


@torch.compiler.disable  # its shapes depend on the mask's values
def _normalize_kept(layer: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x.masked_scatter(mask[..., None], _normalize(layer, x[mask].unsqueeze(0)))


def _normalize_masked(layer: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Group or instance norm whose moments are those of each sample's vectors that count."""
    assert isinstance(layer, (nn.GroupNorm, nn.InstanceNorm1d))
    features = x.shape[-1]
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else features
    parts = x.reshape(x.shape[0], -1, groups, features // groups)
    kept = mask.reshape(x.shape[0], -1, 1, 1)
    count = kept.sum((1, 3), keepdim=True).clamp_min(1) * (features // groups)
    mean = parts.sum((1, 3), keepdim=True) / count
    deviation = torch.where(kept, parts - mean, 0.0)
    variance = deviation.square().sum((1, 3), keepdim=True) / count
    normed = (deviation * (variance + layer.eps).rsqrt()).reshape(x.shape)
    return normed if layer.weight is None else normed * layer.weight + layer.bias


__all__ = ["apply_norm_layer", "build_norm_layer"]
