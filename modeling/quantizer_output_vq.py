# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What a quantizer layer returns beside the quantized tensor, and what is counted of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from .outputs_vq import ShortOutput


@dataclass(repr=False)
class QuantizerOutput(ShortOutput):
    """What a quantizer layer returns beside the quantized tensor. `...` are the axes of the input without `dim`.

    A layer of your own has to give `q`; what it leaves at None, `Quantizer` fills in. Where a `mask` is false, ids are
    -1, vectors, codes and distances are 0, and nothing counts.

    Args:
        z: the (normalized) input vectors, `(..., groups, code_dim)`, float32 or better; one group for residual layers.
        z_q: their codes, same shape; with gradient to the codebook, not to `z`.
        d: Euclidean distance of each vector to its code, `(..., groups)`; of a residual layer, after each level.
        q: ids of the codes, int64 `(..., groups)`. Ids are global: with separate codebooks, group g's start at
            `g * num_codes / groups`. -1 where there is no code. None under `no_vq`.
        loss: `(1 - beta) mean((z - sg z_q)^2) + beta mean((sg z - z_q)^2)`, a scalar.
        perplexity: exponential of the entropy of the batch's code frequencies, in `[1, num_codes]`, a scalar. In
            training over all ranks, in eval over this one; 0 for an empty batch.
        usage: share of the codes used by the batch, in `[0, 1]`, a scalar; over the ranks as `perplexity`.
        replaced: bool `(num_codes,)`, the codes initialized or replaced at the start of this forward; None if none,
            or under `torch.compile` a mask without True.
    """

    z: torch.Tensor | None = None
    z_q: torch.Tensor | None = None
    d: torch.Tensor | None = None
    q: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    usage: torch.Tensor | None = None
    replaced: torch.Tensor | None = None


def blank(
    z_q: torch.Tensor, output: QuantizerOutput, mask: torch.Tensor, dim: int
) -> tuple[torch.Tensor, QuantizerOutput]:
    """Zeros, and ids of -1, where a mask is false.

    Args:
        z_q: the quantized tensor, with its features along `dim`.
        output: what comes with it.
        mask: bool, the shape of `z_q` without `dim`.
        dim: the axis of the features.
    """
    new = {}
    for name, value in (("z", 0.0), ("z_q", 0.0), ("d", 0.0), ("q", -1)):
        field = getattr(output, name)
        if field is not None:
            new[name] = torch.where(mask.reshape(mask.shape + (1,) * (field.ndim - mask.ndim)), field, value)
    return torch.where(mask.unsqueeze(dim), z_q, 0.0), dataclasses.replace(output, **new)


def count_ids(q: torch.Tensor, num_codes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """How often each id occurs in `q`, of any shape: `(num_codes,)`. -1 does not count."""
    index = q.flatten()
    counts = torch.zeros(num_codes, dtype=dtype, device=q.device)
    return counts.index_add_(0, index.clamp_min(0), (index >= 0).to(dtype))


def describe_counts(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Perplexity and usage of codes that were used so often, `(num_codes,)`."""
    frequency = counts / counts.sum().clamp_min(1)
    perplexity = (-torch.xlogy(frequency, frequency).sum()).exp() * (counts.sum() > 0)
    return perplexity, (counts > 0).to(frequency.dtype).mean()
