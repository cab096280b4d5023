"""What all metrics share: sums that do not depend on their order, and the use of codes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hf_vq.utils.processes import sum_over_processes

if TYPE_CHECKING:
    from accelerate import Accelerator


def perplexity(counts: torch.Tensor) -> float:
    """How many codes are in use, effectively: the exponential of the entropy of the code frequencies.

    Args:
        counts: How often each code was used, shape (num_codes,).

    Returns:
        Between 1 (one code does it all) and ``num_codes`` (all equally often); 0 where nothing was counted.
    """
    counts = counts.double()
    if not counts.sum() > 0:
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


class ExactSum:
    """A sum that is the same to the bit in whatever order, batches and processes its terms are added up.

    Each term is cut in two, on a coarse and on a fine grid. Float64 adds up numbers on a grid without rounding: here
    as long as the sum stays below 2^41 and there are fewer than two million terms. What a term has beyond the fine
    grid is dropped, at most 1.4e-14.

    Args:
        shape: Of a term.
    """

    COARSE, FINE = 2.0**12, 2.0**45

    def __init__(self, *shape: int) -> None:
        self._parts = torch.zeros(2, *shape, dtype=torch.float64)

    def add(self, terms: torch.Tensor) -> None:
        """Adds terms (number, *shape), in float64 on the CPU."""
        coarse = (terms * self.COARSE).round() / self.COARSE
        self._parts[0] += coarse.sum(0)
        self._parts[1] += ((terms - coarse) * self.FINE).round().sum(0) / self.FINE

    def compute(self, accelerator: Accelerator | None = None) -> torch.Tensor:
        """The sum over all processes, (*shape); a collective."""
        return sum_over_processes(self._parts, accelerator).sum(0)


def bits_per_image(
    tokens_per_image: int, num_codes: int, perplexity: float, num_codebooks: int = 1
) -> dict[str, float]:
    """What the tokens of an image take, in bits.

    Args:
        tokens_per_image: Over all groups.
        num_codes: Codes in total, over all codebooks.
        perplexity: Of all tokens together, as `TokenizerMetrics.compute` gives it.
        num_codebooks: Separate codebooks that share `num_codes` out evenly, each with as many tokens as the others.

    Returns:
        ``bits_per_image``, with a fixed length for each token; and ``entropy_bits_per_image``, what an ideal entropy
        code would take on average that knows how often each code was used, and nothing of its neighbours.
    """
    # Which codebook a token belongs to is known from its place: that share of the joint entropy need not be told.
    entropy = max(0.0, math.log2(max(perplexity, 1.0)) - math.log2(num_codebooks))
    return {
        "bits_per_image": tokens_per_image * math.log2(num_codes / num_codebooks),
        "entropy_bits_per_image": tokens_per_image * entropy,
    }
