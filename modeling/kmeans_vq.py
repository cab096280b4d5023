# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""K-means with k-means++ seeds (Arthur and Vassilvitskii, 2007), on any device, memory-bounded."""

from __future__ import annotations

import torch

from .nearest_vq import nearest_code

# Up to so many seeds are drawn one by one, as in the paper; beyond it several a round, or 65,536 codes take minutes.
_MAX_ROUNDS = 1024


@torch.no_grad()
def kmeans(vectors: torch.Tensor, num_codes: int, num_iterations: int = 10) -> torch.Tensor:
    """Centroids `(num_codes, D)` of `vectors` `(N, D)`, N at least 1; all rows are distinct.

    With fewer distinct vectors than `num_codes`, each of them is a centroid and the others are jittered copies.
    """
    # Before the first step: afterwards the means of equal vectors differ in the last bit and would pass for distinct.
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

    The noise is `noise` times the deviation of the codes, or, for codes that are all the same, their size (or 1).
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
        scale = scale * 2  # should rounding have swallowed the noise


def _plus_plus_seeds(vectors: torch.Tensor, num_codes: int) -> torch.Tensor:
    """Seeds drawn with probability proportional to the squared distance from the seeds so far."""
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
    """`count` indices with probability proportional to `weights`, which may be all zero (then evenly)."""
    # Exponential race: one pass, without the limit of 2^24 categories that torch.multinomial has.
    race = weights / torch.empty_like(weights).exponential_()
    race = torch.where(weights.sum() > 0, race, torch.rand_like(race))
    return race.topk(count).indices
