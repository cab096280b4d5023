# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The few collectives that a codebook needs.

Every rank must call them in the same order, even with an empty batch. Each call asks whether there are several
processes, so a layer that was built before the process group works too.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(*tensors: torch.Tensor) -> None:
    """Replaces each tensor, in place, by its sum over the ranks. The result has the same bits on all ranks."""
    if is_distributed():
        _all_reduce(*tensors)


def broadcast_from_first(*tensors: torch.Tensor) -> None:
    """Replaces each tensor, in place, by the tensor of rank 0."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def decided_by_first(make: Callable[[], torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Returns rank 0's `make()` on every rank. Use it for anything that draws random numbers.

    Args:
        make: Makes the tensor. Only rank 0 calls it.
        like: Has the shape, dtype and device of the result.
    """
    value = make() if not is_distributed() or dist.get_rank() == 0 else torch.empty_like(like)
    value = value.contiguous()
    broadcast_from_first(value)
    return value


def gather_sample(vectors: torch.Tensor, limit: int) -> torch.Tensor:
    """Returns a random sample of at most `limit` of all ranks' vectors. It is equal on all ranks.

    Args:
        vectors: `(N, D)`. N may differ between the ranks and may be 0.
        limit: The most rows to return. If there are more, each rank gives its share of the total.
    """
    if not is_distributed():
        return _sample(vectors, limit)
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.long, device=vectors.device)
    sizes[dist.get_rank()] = vectors.shape[0]
    dist.all_reduce(sizes)
    counts = sizes.tolist()
    total = sum(counts)
    if total > limit:
        # Shares come from rounded running totals, so they add up to the limit. Rounding each down would lose some.
        ends = [running * limit // total for running in accumulate(counts, initial=0)]
        counts = [end - start for start, end in pairwise(ends)]
    longest = max(counts)
    if longest == 0:
        return vectors[:0]
    sample = _sample(vectors, counts[dist.get_rank()])
    padded = sample.new_zeros(longest, vectors.shape[1])
    padded[: sample.shape[0]] = sample
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


@torch.compiler.disable  # a compiled graph could move it past another collective
def _all_reduce(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        dist.all_reduce(tensor)


def _sample(vectors: torch.Tensor, limit: int) -> torch.Tensor:
    if vectors.shape[0] <= limit:
        return vectors
    return vectors[torch.randperm(vectors.shape[0], device=vectors.device)[:limit]]
