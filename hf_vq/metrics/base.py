"""What all metrics share: sums that do not depend on their order, and how many codes are in use."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hf_vq.utils.processes import sum_over_processes

if TYPE_CHECKING:
    from accelerate import Accelerator


def perplexity(counts: torch.Tensor) -> float:
    """Computes how many codes are in use, effectively: the exponential of the entropy of the code frequencies.

    Args:
        counts: How often each code was used, shape (num_codes,).

    Returns:
        A number between 1 (one code does it all) and `num_codes` (all equally often), or 0 if nothing was counted.
    """
    counts = counts.double()
    if not counts.sum() > 0:
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


class ExactSum:
    """A sum with the same bits in any order, with any batches and over any number of processes.

    It cuts each term in two, one part on a coarse grid and one on a fine grid. Float64 adds numbers on a grid without
    rounding, here as long as the sum stays below 2^41 and there are fewer than two million terms. What a term has
    beyond the fine grid is dropped. That is at most 1.4e-14.

    Args:
        shape: Shape of a term.
    """

    COARSE, FINE = 2.0**12, 2.0**45

    def __init__(self, *shape: int) -> None:
        self._parts = torch.zeros(2, *shape, dtype=torch.float64)

    def add(self, terms: torch.Tensor) -> None:
        """Adds terms (number, *shape), float64 on the CPU."""
        coarse = (terms * self.COARSE).round() / self.COARSE
        self._parts[0] += coarse.sum(0)
        self._parts[1] += ((terms - coarse) * self.FINE).round().sum(0) / self.FINE

    def compute(self, accelerator: Accelerator | None = None) -> torch.Tensor:
        """Returns the sum over all processes, (*shape). Every process must call it."""
        return sum_over_processes(self._parts, accelerator).sum(0)


def bits_per_image(
    tokens_per_image: int, num_codes: int, perplexity: float, num_codebooks: int = 1
) -> dict[str, float]:
    """Computes how many bits the tokens of an image take.

    Args:
        tokens_per_image: Tokens of an image, over all groups.
        num_codes: Codes in total, over all codebooks.
        perplexity: Perplexity of all tokens together, as `TokenizerMetrics.compute` returns it.
        num_codebooks: Number of separate codebooks. They share `num_codes` evenly, and each has as many tokens as the
            others.

    Returns:
        `bits_per_image` is the size with a fixed length for each token. `entropy_bits_per_image` is the average size
        with an ideal entropy code that knows how often each code was used, but looks at no neighbors.
    """
    # The place of a token tells its codebook, so that share of the joint entropy needs no bits.
    entropy = max(0.0, math.log2(max(perplexity, 1.0)) - math.log2(num_codebooks))
    return {
        "bits_per_image": tokens_per_image * math.log2(num_codes / num_codebooks),
        "entropy_bits_per_image": tokens_per_image * entropy,
    }
