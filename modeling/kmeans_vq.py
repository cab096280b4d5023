# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""K-means with k-means++ seeds (Arthur and Vassilvitskii, 2007), on any device and in bounded memory."""

from __future__ import annotations

import torch

from .nearest_vq import nearest_code

# Up to this many seeds are drawn one by one, as in the paper. Beyond it each round draws several, because 65,536 codes
# would take minutes one by one.
_MAX_ROUNDS = 1024


@torch.no_grad()
def kmeans(vectors: torch.Tensor, num_codes: int, num_iterations: int = 10) -> torch.Tensor:
    """Clusters vectors. All centroids are distinct.

    If there are fewer distinct vectors than `num_codes`, each of them is a centroid, and the other centroids are
    jittered copies.

    Args:
        vectors: `(N, D)`, N at least 1.
        num_codes: Number of centroids.
        num_iterations: Number of Lloyd steps after the seeds.

    Returns:
        Centroids `(num_codes, D)`.
    """
    # Must run before the first step. Afterwards the means of equal vectors differ in the last bit and look distinct.
    codes = make_distinct(_plus_plus_seeds(vectors, num_codes))
    for _ in range(num_iterations if vectors.shape[0] > num_codes else 0):
        index = nearest_code(vectors, codes)
        counts = torch.zeros_like(codes[:, 0]).index_add_(0, index, torch.ones_like(vectors[:, 0]))
        sums = torch.zeros_like(codes).index_add_(0, index, vectors)
        codes = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], codes)
    return make_distinct(codes)


@torch.no_grad()
def make_distinct(codes: torch.Tensor, noise: float = 0.01) -> torch.Tensor:
    """Adds noise to every row that repeats an earlier one, until all rows differ.

    Args:
        codes: `(K, D)`.
        noise: Size of the noise, relative to the standard deviation of the codes. If all codes are the same, it is
            relative to their size, or to 1 if they are zero.

    Returns:
        The codes `(K, D)` without repeated rows.
    """
    spread = codes.std(0).square().mean().sqrt() if codes.shape[0] > 1 else codes.new_zeros(())
    size = codes.square().mean().sqrt()
    scale = noise * torch.where(spread > 1e-6 * size, spread, torch.where(size > 0, size, torch.ones_like(size)))
    codes = codes.clone()
    while True:
        _, group = codes.unique(dim=0, return_inverse=True)
        rows = torch.arange(len(codes), device=codes.device)
        first = torch.full_like(rows, len(codes)).scatter_reduce_(0, group, rows, "amin")
        repeated = (first[group] != rows).nonzero().squeeze(1)
        if len(repeated) == 0:
            return codes
        codes[repeated] += scale * torch.randn_like(codes[repeated])
        scale = scale * 2  # in case rounding swallowed the noise


def _plus_plus_seeds(vectors: torch.Tensor, num_codes: int) -> torch.Tensor:
    """Draws seeds with probability proportional to the squared distance from the seeds so far."""
    num_vectors = vectors.shape[0]
    if num_vectors <= num_codes:
        extra = torch.randint(num_vectors, (num_codes - num_vectors,), device=vectors.device)
        return torch.cat([vectors, vectors[extra]])
    per_round = -(-num_codes // _MAX_ROUNDS)
    seeds = vectors.new_empty(num_codes, vectors.shape[1])
    seeds[0] = vectors[torch.randint(num_vectors, (), device=vectors.device)]
    distance = (vectors - seeds[0]).square().sum(1)
    filled = 1
    while filled < num_codes:
        count = min(per_round, num_codes - filled)
        index = _draw(distance, count)
        seeds[filled : filled + count] = vectors[index]
        if count == 1:
            new_distance = (vectors - vectors[index]).square().sum(1)
        else:
            nearest = nearest_code(vectors, vectors[index])
            new_distance = (vectors - vectors[index][nearest]).square().sum(1)
        distance = torch.minimum(distance, new_distance)
        filled += count
    return seeds


def _draw(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Draws `count` indices with probability proportional to `weights`. If all weights are zero, it draws evenly."""
    # An exponential race takes one pass and has no limit of 2^24 categories, unlike torch.multinomial.
    race = weights / torch.empty_like(weights).exponential_()
    race = torch.where(weights.sum() > 0, race, torch.rand_like(race))
    return race.topk(count).indices
