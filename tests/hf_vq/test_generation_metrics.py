"""Metrics of generators: sums over tokens, and FID's arithmetic on shrunk images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from hf_vq.generation_metrics import FrechetDistance, HiddenTokenMetrics


def test_every_hidden_token_counts_the_same() -> None:
    """A batch with one hidden token weighs a third of one with three; visible tokens do not count."""
    metrics = HiddenTokenMetrics()
    logits = torch.zeros(2, 2, 2, 4)
    logits[0, 0, 0] = torch.tensor([math.log(5), 0, 0, 0])  # 5 of 8
    targets = torch.zeros(2, 2, 2, dtype=torch.long)
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = True
    metrics.update(logits[:1], targets[:1], mask[:1])
    mask[1].flatten()[:3] = True
    metrics.update(logits[1:], targets[1:] + 2, mask[1:])

    assert metrics.compute() == {
        "num_images": 2,
        "masked_cross_entropy": pytest.approx((math.log(8 / 5) + 3 * math.log(4)) / 4),
        "masked_accuracy": 0.25,
    }


def test_nothing_measured_is_an_error() -> None:
    """Neither metric makes a number of nothing."""
    with pytest.raises(ValueError, match="no hidden tokens"):
        HiddenTokenMetrics().compute()
    distance = FrechetDistance()
    distance.update(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), generated=True)
    with pytest.raises(ValueError, match="at least two images of each kind, got 0"):
        distance.compute()


class Shrunk(nn.Module):
    """The features in torchmetrics' form."""

    num_features = 192

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Uint8 images to (batch, 192)."""
        return nn.functional.adaptive_avg_pool2d(images.double() / 255, 8).flatten(1)


def test_the_distance_is_fids_arithmetic() -> None:
    """Torchmetrics' FID on the same features agrees, with more images than features and with fewer."""
    torch.manual_seed(0)
    for count in (300, 20):
        real = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8)
        generated = torch.randint(60, 256, (count + 7, 3, 16, 16), dtype=torch.uint8)
        distance, expected = FrechetDistance(), FrechetInceptionDistance(feature=Shrunk(), normalize=False)
        expected.set_dtype(torch.float64)
        for images, is_generated in ((real, False), (generated, True)):
            for part in images.split(11):
                distance.update(part, is_generated)
            expected.update(images, real=not is_generated)

        assert distance.compute() == pytest.approx(expected.compute().item(), rel=1e-4)


def test_the_distance_of_images_to_themselves_is_zero_and_grows_with_a_shift() -> None:
    """Two sets that differ by a constant are its squared length apart."""
    images = torch.randint(0, 200, (50, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    same, shifted = FrechetDistance(1), FrechetDistance(1)
    for distance, other in ((same, images), (shifted, images + 51)):
        distance.update(images, generated=False)
        distance.update(other, generated=True)

    assert same.compute() == pytest.approx(0, abs=1e-6)
    assert shifted.compute() == pytest.approx(64 * 0.2**2, abs=1e-6)
