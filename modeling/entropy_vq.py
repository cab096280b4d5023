# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Entropies of soft assignments: how sure each vector is of its code, and how evenly the codes are used."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .batch_norm_vq import in_backward
from .distributed_vq import is_distributed, sum_over_ranks
from .recent_forwards_vq import RecentForwards


class EntropyOfRanks:
    """The entropy of the mean assignment of all ranks' vectors.

    A recomputation by activation checkpointing takes the other ranks' share from the forward that it recomputes.
    """

    def __init__(self) -> None:
        self._recent = RecentForwards(2)  # as long as the list of all codes, so few of them

    def __call__(self, total: torch.Tensor, count: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Entropy in nats.

        Its gradient is that of this rank's share times the number of ranks: whoever averages the ranks' gradients
        gets the gradient of the entropy.

        Args:
            total: probabilities of all codes, `(num_codes,)`, summed over this rank's vectors.
            count: number of these vectors, a scalar.
            x: what they were computed from, by which a recomputation is known.
        """
        mean = total / count.clamp_min(1)
        if is_distributed():
            everywhere = self._sum(torch.cat([total.detach().flatten(), count.detach()[None]]), x)
            number = everywhere[-1].clamp_min(1)
            share = torch.distributed.get_world_size() / number
            mean = everywhere[:-1].view_as(total) / number + share * (total - total.detach())
        return -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()

    def _sum(self, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        found = self._recent.find(x) if in_backward() else None
        if found is None:
            sum_over_ranks(values)
            self._recent.add(x, found := values)
        return found


def binary_entropies(
    log_odds: torch.Tensor, over_ranks: EntropyOfRanks, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropies of codes that are independent bits. Both are exact.

    All 2^bits probabilities of the mean assignment are one product of two matrices, a half of the bits each, so the
    memory for N vectors is that of `N x 2^(bits / 2)` numbers.

    Args:
        log_odds: `log p(1) - log p(0)` of each bit, `(N, bits)`.
        over_ranks: the layer's own.
        weight: 1 for vectors that count and 0 for others, `(N,)`; all count by default.

    Returns:
        The mean entropy of an assignment, and the entropy of the mean assignment (over all ranks), in nats.
    """
    bits = log_odds.shape[1]
    weight = torch.ones_like(log_odds[:, 0]) if weight is None else weight.to(log_odds.dtype)
    ones = log_odds.sigmoid()
    each = (F.softplus(log_odds) - log_odds * ones).sum(1)
    low, high = (_joint(half) for half in ones.split([bits // 2, bits - bits // 2], 1))
    return _mean(each, weight), over_ranks((high * weight[:, None]).T @ low, weight.sum(), log_odds.detach())


def softmax_entropies(
    logits: torch.Tensor, over_ranks: EntropyOfRanks, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `binary_entropies`, of the assignments `softmax(logits)`, with logits `(N, num_codes)`."""
    weight = torch.ones_like(logits[:, 0]) if weight is None else weight.to(logits.dtype)
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    return _mean(-(p * log_p).sum(1), weight), over_ranks(weight @ p, weight.sum(), logits.detach())


class EntropyLoss:
    """`weight (E[H(p)] - diversity H(E[p]))`: each vector is sure of its code, and all codes are used.

    Args:
        weight: 0 leaves it out.
        diversity: weight of the second entropy beside the first.
        temperature: of the soft assignments p.
    """

    def __init__(self, weight: float, diversity: float, temperature: float) -> None:
        self.weight, self.diversity, self.temperature = weight, diversity, temperature
        self._over_ranks = EntropyOfRanks()

    def of_signs(self, x: torch.Tensor, size: float, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Of vectors `(N, bits)` whose codes are `size` times their signs; `kept` `(N,)` says which of them count."""
        # The logits `2 x . c` of a bit's two values differ by `2 x (size - -size)`.
        return self._of(binary_entropies(x * (4 * size / self.temperature), self._over_ranks, kept))

    def of_logits(self, logits: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Of vectors with logits `(N, num_codes)`."""
        return self._of(softmax_entropies(logits / self.temperature, self._over_ranks, kept))

    def _of(self, entropies: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        sure, even = entropies
        return self.weight * (sure - self.diversity * even)


def _joint(ones: torch.Tensor) -> torch.Tensor:
    """Probabilities of all words of independent bits, `(N, 2^bits)`; the first bit is the lowest."""
    joint = ones.new_ones(ones.shape[0], 1)
    for one in ones.unbind(1):
        joint = torch.cat([joint * (1 - one[:, None]), joint * one[:, None]], 1)
    return joint


def _mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (values * weight).sum() / weight.sum().clamp_min(1)


__all__ = ["EntropyLoss", "EntropyOfRanks", "binary_entropies", "softmax_entropies"]
