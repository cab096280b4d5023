"""Quality of a generator, exact over any number of processes: guesses of hidden tokens, and a distance of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .metrics import sum_over_processes

if TYPE_CHECKING:
    from accelerate import Accelerator

FEATURE_SIDE = 8


class HiddenTokenMetrics:
    """Accumulates how well hidden tokens are guessed; every hidden token counts the same, whatever its batch."""

    def __init__(self) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64)  # cross entropy, right guesses, hidden tokens, images

    @torch.no_grad()
    def update(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            logits: (batch, ..., codes).
            targets: The right codes as indices of the last axis, (batch, ...).
            mask: True where a token was hidden, (batch, ...).
        """
        logits, right = logits[mask].float(), targets[mask]
        entropies = F.cross_entropy(logits, right, reduction="none").cpu().double()
        hits = logits.argmax(-1) == right
        self._sums += torch.tensor([entropies.sum(), hits.sum(), len(right), len(mask)], dtype=torch.float64)

    def compute(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """The metrics over all processes; every process must call it.

        Returns:
            ``num_images``; over the hidden tokens ``masked_cross_entropy``, in nats, and ``masked_accuracy``, the
            share that the likeliest code gets right.

        Raises:
            ValueError: No process has seen a hidden token.
        """
        entropy, hits, tokens, images = sum_over_processes(self._sums, accelerator).tolist()
        if not tokens:
            raise ValueError("no hidden tokens to measure: update was never called with any")
        return {
            "num_images": int(images),
            "masked_cross_entropy": entropy / tokens,
            "masked_accuracy": hits / tokens,
        }


class FrechetDistance:
    """The Fréchet distance between the features of two sets of images, each taken for a normal distribution.

    This is FID's arithmetic (arXiv 1706.08500), but not FID: the features are not Inception's but the image itself,
    shrunk to 8 x 8 pixels in [0, 1]. They need no download and see colours and rough shapes, no details. Values can be
    compared if they are of the same reference images and of as many generated ones: fewer give larger distances.

    Args:
        num_channels: Of the images.
    """

    def __init__(self, num_channels: int = 3) -> None:
        size = num_channels * FEATURE_SIDE**2 + 1
        self._sums = torch.zeros(2, size, size, dtype=torch.float64)

    @torch.no_grad()
    def update(self, images: torch.Tensor, generated: bool) -> None:
        """Adds images to one of the two sets.

        Args:
            images: (batch, channels, height, width), uint8.
            generated: Which set.
        """
        features = F.adaptive_avg_pool2d(images.cpu().double() / 255, FEATURE_SIDE).flatten(1)
        features = F.pad(features, (0, 1), value=1.0)  # so that the products hold sums and count as well
        self._sums[int(generated)] += features.T @ features

    def compute(self, accelerator: Accelerator | None = None) -> float:
        """The distance over all processes; every process must call it, also one that has seen no image.

        Raises:
            ValueError: One of the sets has fewer than two images.
        """
        means, covariances = [], []
        for products in sum_over_processes(self._sums, accelerator):
            count = products[-1, -1]
            if count < 2:
                raise ValueError(f"a distance needs at least two images of each kind, got {int(count)}")
            mean = products[-1, :-1] / count
            means.append(mean)
            covariances.append((products[:-1, :-1] - count * mean.outer(mean)) / (count - 1))
        root = _square_root(covariances[0])
        # The trace of (AB)^(1/2) is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric.
        cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
        traces = covariances[0].trace() + covariances[1].trace()
        return float((means[0] - means[1]).square().sum() + traces - 2 * cross)


def _square_root(matrix: torch.Tensor) -> torch.Tensor:
    """Of a symmetric matrix without negative eigenvalues, but for rounding."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
