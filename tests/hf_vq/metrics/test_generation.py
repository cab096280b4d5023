"""Metrics of generators: sums over tokens, and comparisons of features against other implementations."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchmetrics.image.inception import InceptionScore

from hf_vq.metrics import generation
from hf_vq.metrics.features import Features
from hf_vq.metrics.generation import (
    FeatureSample,
    FrechetDistance,
    GeneratorMetrics,
    HiddenTokenMetrics,
    kernel_distance,
    precision_recall,
)

WORKER = Path(__file__).with_name("generation_worker.py")


def draw(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    """Draws features of some images."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_every_hidden_token_counts_the_same() -> None:
    """A batch with one hidden token weighs a third of one with three. Visible tokens do not count."""
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
    """No metric gives a number if nothing was measured."""
    with pytest.raises(ValueError, match="no hidden tokens"):
        HiddenTokenMetrics().compute()
    distance = FrechetDistance(6)
    distance.update(draw(3), generated=True)
    with pytest.raises(ValueError, match="at least two images of each kind, got 0"):
        distance.compute()
    with pytest.raises(ValueError, match="at least two images of each kind, got 1"):
        kernel_distance(draw(1), draw(5))
    with pytest.raises(ValueError, match="3 neighbors need more images than that in each set, got 9 and 3"):
        precision_recall(draw(9), draw(3))


def frechet(first: torch.Tensor, second: torch.Tensor) -> float:
    """Computes the distance by its formula, with the roots of all eigenvalues of the product."""
    means = [values.double().mean(0) for values in (first, second)]
    covariances = [torch.cov(values.double().T) for values in (first, second)]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    return float((means[0] - means[1]).square().sum() + sum(c.trace() for c in covariances) - 2 * roots)


def test_the_frechet_distance_follows_its_formula() -> None:
    """It does so with more images than features and with fewer, in batches of any size."""
    for count in (300, 4):
        reference, generated = draw(count), 0.5 * draw(count + 7, seed=1) + 1
        distance = FrechetDistance(6)
        for features, is_generated in ((reference, False), (generated, True)):
            for part in features.split(3):
                distance.update(part, is_generated)

        assert distance.compute() == pytest.approx(frechet(reference, generated), rel=1e-5)


def test_the_frechet_distance_of_a_set_to_itself_is_zero_and_grows_with_a_shift() -> None:
    """Two sets that differ by a constant are its squared length apart. A further batch counts after a first result."""
    features = draw(50)
    same, shifted = FrechetDistance(6), FrechetDistance(6)
    for distance, other in ((same, features), (shifted, features + 0.5)):
        distance.update(features, generated=False)
        distance.update(other, generated=True)

    assert same.compute() == pytest.approx(0, abs=1e-6)
    assert shifted.compute() == pytest.approx(6 * 0.5**2, rel=1e-5)
    shifted.update(features[:25] + 5, generated=True)
    assert shifted.compute() > 6


def test_memory_does_not_grow_with_the_images() -> None:
    """Once the samples are full, memory is the same after forty batches as after four."""
    metrics, sizes = GeneratorMetrics(6, 3, sample_size=32), []
    for number in range(40):
        for generated in (False, True):
            features = Features(draw(16, seed=number), draw(16, 3, seed=number))
            metrics.update(features, torch.arange(16) + 16 * number, generated=generated)
        sizes.append(len(pickle.dumps(metrics)))

    assert metrics.compute()["num_generated"] == 640
    assert max(sizes[4:]) - min(sizes[4:]) < 100


def test_a_sample_is_uniform_bounded_and_independent_of_the_order() -> None:
    """The images' numbers choose them. Other orders and batches keep the same images, another seed keeps others."""
    features, indices = draw(500), torch.arange(500)
    samples = [FeatureSample(64, 6), FeatureSample(64, 6), FeatureSample(64, 6, seed=1)]
    samples[0].update(features, indices)
    for rows in indices.flip(0).split(7):
        samples[1].update(features[rows], rows)
    samples[2].update(features, indices)
    first, second, other = (sample.compute() for sample in samples)

    assert torch.equal(first, second) and first.shape == (64, 6)
    assert not torch.equal(first, other)
    kept = [int((features == row).all(1).nonzero()) for row in first]
    assert len(set(kept)) == 64
    assert 150 < sum(kept) / 64 < 350  # 250 on average, with a standard deviation of 17
    few = FeatureSample(64, 6)
    few.update(features[:5], indices[:5])
    assert few.compute().sum() == pytest.approx(features[:5].sum().item(), rel=1e-5)


def test_the_kernel_distance_is_the_unbiased_estimate() -> None:
    """Small sets follow the formula over all pairs. Larger sets give a deviation that depends on the seed."""
    first, second = draw(40), draw(40, seed=1) + 0.5
    kernels = [
        (a.double() @ b.double().T / 6 + 1) ** 3 for a, b in ((first, first), (first, second), (second, second))
    ]
    within = [(kernel.sum() - kernel.trace()) / (40 * 39) for kernel in (kernels[0], kernels[2])]
    expected = sum(within) - 2 * kernels[1].mean()
    state = torch.random.get_rng_state()

    assert kernel_distance(first, second) == {"kernel": pytest.approx(expected.item(), rel=1e-9)}
    large = kernel_distance(draw(1100), draw(1001, seed=1) + 0.5)
    assert large == kernel_distance(draw(1100), draw(1001, seed=1) + 0.5)
    assert large["kernel_std"] > 0
    assert large != kernel_distance(draw(1100), draw(1001, seed=1) + 0.5, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_precision_and_recall_count_neighborhoods() -> None:
    """They equal a plain loop. A generator that shows half of the data has full precision and half the recall."""
    first, second = draw(30, width=2), draw(40, width=2, seed=1) * 1.5

    def share(points: torch.Tensor, centers: torch.Tensor) -> float:
        hits = 0
        for point in points:
            for center in centers:
                radius = (centers - center).norm(dim=1).sort().values[3]  # the nearest is the center itself
                if (point - center).norm() <= radius:
                    hits += 1
                    break
        return hits / len(points)

    expected = {"precision": share(second, first), "recall": share(first, second)}
    assert 0 < expected["recall"] < 1 and 0 < expected["precision"] < 1
    assert precision_recall(first, second) == pytest.approx(expected)

    left, right = draw(2000, width=2), draw(2000, width=2, seed=1) + 100
    half = precision_recall(torch.cat([left, right]), draw(1500, width=2, seed=2))
    assert half["precision"] > 0.95 and 0.45 < half["recall"] < 0.5


def test_the_score_is_the_inception_score_of_each_split() -> None:
    """Split s holds the images with a number of s modulo 10, and torchmetrics agrees on each split."""
    logits = 2 * draw(95, width=5)
    metrics = GeneratorMetrics(6, num_classes=5)
    metrics.update(Features(draw(9), None), torch.arange(9), generated=False)
    for rows in torch.arange(95).split(40):
        metrics.update(Features(draw(95)[rows], logits[rows]), rows, generated=True)
    expected = []
    for split in range(10):
        score = InceptionScore(feature=nn.Identity(), splits=1)
        score.update(logits[split::10])
        expected.append(score.compute()[0])

    values = metrics.compute()
    assert values["score"] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    assert values["score_std"] == pytest.approx(torch.stack(expected).std(unbiased=False).item(), rel=1e-4)
    assert metrics.estimators(values)["score"] == {"splits": 10}


def test_what_cannot_be_estimated_is_left_out() -> None:
    """There is no score without logits, and no precision for so few images that all are neighbors."""
    metrics = GeneratorMetrics(6)
    for generated in (False, True):
        metrics.update(Features(draw(3, seed=int(generated)), None), torch.arange(3), generated=generated)
    values = metrics.compute()

    assert set(values) == {"num_reference", "num_generated", "frechet", "kernel"}
    assert metrics.estimators(values) == {
        "kernel": {"kernel": "polynomial, degree 3", "subsets": 1, "subset_size": 3},
        "seed": 0,
    }


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    """Two real processes, one without reference images, agree bit for bit with each other and a single one."""

    def start(rank: int, world_size: int) -> subprocess.Popen[bytes]:
        words = [str(tmp_path / "store"), str(rank), str(world_size), str(Path(generation.__file__).parents[1])]
        return subprocess.Popen([sys.executable, str(WORKER), *words], env=os.environ | {"OMP_NUM_THREADS": "1"})

    processes = [start(0, 2), start(1, 2), start(0, 1)]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()

    first, second, single = (
        json.loads((tmp_path / f"store-{name}.json").read_text()) for name in ("0-of-2", "1-of-2", "0-of-1")
    )
    assert first == second
    assert first["sample"] == single["sample"] and len(single["sample"]) == 16
    assert first["metrics"] == single["metrics"]
    assert {"frechet", "kernel", "precision", "recall", "score"} < set(single["metrics"])
