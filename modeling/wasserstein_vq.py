# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The Wasserstein distance between vectors and codes as normal distributions, in closed form."""

from __future__ import annotations

import torch

from .distributed_vq import sum_over_ranks


@torch.no_grad()
def moments_over_ranks(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `(dim,)` and covariance `(dim, dim)` of all ranks' vectors `(N, dim)`."""
    count = vectors.new_tensor(float(len(vectors)))
    total = vectors.sum(0)
    sum_over_ranks(count, total)
    mean = total / count.clamp_min(1)
    centered = vectors - mean
    scatter = centered.T @ centered
    sum_over_ranks(scatter)
    return mean, scatter / count.clamp_min(1)


def gaussian_wasserstein(mean: torch.Tensor, covariance: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Squared 2-Wasserstein distance of two normal distributions: these moments, and those of the codes.

    `|m - n|^2 + tr(S + T - 2 (S^1/2 T S^1/2)^1/2)`. The gradient goes to the codes.

    Args:
        mean: of the vectors, `(dim,)`.
        covariance: of the vectors, `(dim, dim)`.
        codes: `(num_codes, dim)`.

    Source: Fang et al. 2025, "Enhancing Vector Quantization with Distributional Matching" (arXiv 2506.15078).
    """
    code_mean = codes.mean(0)
    centered = codes - code_mean
    code_covariance = centered.T @ centered / len(codes)
    with torch.no_grad():
        values, directions = torch.linalg.eigh(covariance)
        root = directions * values.clamp_min(0).sqrt() @ directions.T
    product = torch.linalg.eigvalsh(root @ code_covariance @ root)
    tiny = torch.finfo(product.dtype).eps * product.detach().amax().clamp_min(torch.finfo(product.dtype).tiny)
    cross = product.clamp_min(tiny).sqrt().sum()  # the root of zero has no gradient
    return (mean - code_mean).square().sum() + covariance.trace() + code_covariance.trace() - 2 * cross


__all__ = ["gaussian_wasserstein", "moments_over_ranks"]
