"""Quality of a generator: guesses of hidden tokens, and distances between the features of two sets of images.

The numbers are exact over any number of processes. Sums are streamed. Metrics that compare features one by one use a
sample of fixed size, so memory does not grow with the number of images.
"""

from __future__ import annotations

import hashlib
import heapq
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from hf_vq.metrics.base import ExactSum
from hf_vq.utils.processes import gather_over_processes, sum_over_processes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_vq.metrics.features import Features

SAMPLE_SIZE = 10_000  # images of each set, for metrics that compare features one by one
NEIGHBORS = 3  # Kynkäänniemi et al.
KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 1000  # as in torchmetrics and torch-fidelity
SCORE_SPLITS = 10  # Salimans et al.


class HiddenTokenMetrics:
    """Accumulates how well hidden tokens are guessed. Every hidden token counts the same, in any batch."""

    def __init__(self) -> None:
        self._entropy = ExactSum()
        self._counts = torch.zeros(3, dtype=torch.int64)  # right guesses, hidden tokens, images

    @torch.no_grad()
    def update(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            logits: Logits (batch, ..., codes).
            targets: The right codes, as indices of the last axis of `logits`, (batch, ...).
            mask: True where a token was hidden, (batch, ...).
        """
        logits, right = logits[mask].float(), targets[mask]
        self._entropy.add(F.cross_entropy(logits, right, reduction="none").cpu().double())
        hits = logits.argmax(-1) == right
        self._counts += torch.tensor([int(hits.sum()), len(right), len(mask)])

    def compute(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Computes the metrics over all processes. Every process must call it.

        Returns:
            `num_images`, and two metrics of the hidden tokens: `masked_cross_entropy`, in nats, and `masked_accuracy`,
            the share for which the likeliest code is right.

        Raises:
            ValueError: If no process has seen a hidden token.
        """
        entropy = float(self._entropy.compute(accelerator))
        hits, tokens, images = sum_over_processes(self._counts, accelerator).tolist()
        if not tokens:
            raise ValueError("There are no hidden tokens to measure. Call `update` with some before `compute`.")
        return {
            "num_images": images,
            "masked_cross_entropy": entropy / tokens,
            "masked_accuracy": hits / tokens,
        }


class FrechetDistance:
    """The Fréchet distance between the features of two sets, each modeled as a normal distribution (arXiv 1706.08500).

    With Inception's features this is FID. Compare values only if they have the same features, the same reference
    images and the same number of generated images. Fewer images give larger distances. The arithmetic is
    torchmetrics', in float64. The sums are our own, because those are exact.

    Args:
        num_features: Width of the features.
    """

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features
        # Products of all features and 1, for both sets: second moments, sums and the count in one table.
        self._products = [ExactSum(num_features + 1, num_features + 1) for _ in range(2)]

    @torch.no_grad()
    def update(self, features: torch.Tensor, generated: bool) -> None:
        """Adds features to one of the two sets.

        Args:
            features: Features (batch, num_features).
            generated: Whether the images are generated ones.
        """
        features = F.pad(features.cpu().double(), (0, 1), value=1.0)
        self._products[int(generated)].add((features.T @ features)[None])

    def compute(self, accelerator: Accelerator | None = None) -> float:
        """Computes the distance over all processes. Every process must call it, even if it has seen no image.

        Raises:
            ValueError: If one of the sets has fewer than two images.
        """
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(feature=_Given(self.num_features), sync_on_compute=False)
        for name, products in zip(("real", "fake"), self._products, strict=True):
            total = products.compute(accelerator)
            count = int(total[-1, -1])
            _require_two(count)
            metric.update(torch.zeros(0, self.num_features, dtype=torch.float64), real=name == "real")
            setattr(metric, f"{name}_features_sum", total[-1, :-1])
            setattr(metric, f"{name}_features_cov_sum", total[:-1, :-1])
            setattr(metric, f"{name}_features_num_samples", torch.tensor(count))
        return max(0.0, float(metric.compute()))  # rounding can take the distance of a set to itself below zero


class FeatureSample:
    """A uniform sample of the features of a set. Its size is bounded, and only the images' numbers decide on it.

    Each image gets a hash of the seed and its number, and the sample keeps the images with the smallest hashes. So it
    depends neither on the order of the images nor on how many processes share them.

    Args:
        size: The most images to keep.
        num_features: Width of the features.
        seed: Another seed chooses another sample.
    """

    def __init__(self, size: int, num_features: int, seed: int = 0) -> None:
        self.size, self.num_features, self.seed = size, num_features, seed
        self._heap: list[tuple[int, int, torch.Tensor]] = []  # the largest hash comes first, equal hashes by number

    def update(self, features: torch.Tensor, indices: torch.Tensor) -> None:
        """Adds images.

        Args:
            features: Features (batch, num_features).
            indices: Numbers of the images (batch,). Each may come only once, on any process.
        """
        for index, row in zip(indices.tolist(), features.cpu().float(), strict=True):
            digest = hashlib.blake2b(f"{self.seed} {index}".encode(), digest_size=8).digest()
            key = int.from_bytes(digest, "big") >> 2  # fits an int64, with room for the mark of an empty place
            if len(self._heap) < self.size:
                heapq.heappush(self._heap, (-key, -index, row.clone()))
            elif -key > self._heap[0][0]:
                heapq.heapreplace(self._heap, (-key, -index, row.clone()))

    def compute(self, accelerator: Accelerator | None = None) -> torch.Tensor:
        """Returns the sample over all processes, (kept, num_features) in float32. Every process must call it."""
        own = [(-key, row) for key, _, row in self._heap]
        empty = torch.iinfo(torch.int64).max
        keys = torch.tensor([key for key, _ in own] + [empty] * (self.size - len(own)), dtype=torch.int64)
        everyone = torch.cat(gather_over_processes(keys, accelerator)).sort().values
        kept = everyone[everyone != empty][: self.size]
        table = torch.zeros(len(kept), self.num_features)
        for key, row in own:
            place = int(torch.searchsorted(kept, key))
            if place < len(kept) and kept[place] == key:
                table[place] = row
        # Each row comes from one process and is zero on the others. Parts limit the memory of the collective.
        return torch.cat([sum_over_processes(part, accelerator) for part in table.split(1024)] or [table])


class GeneratorMetrics:
    """Accumulates the features of reference images and of generated ones.

    Args:
        num_features: Width of the features.
        num_classes: Width of the extractor's logits, or 0 if it has none.
        sample_size: Images of each set to keep for the kernel distance and for precision and recall.
        seed: Chooses these images, and the subsets of the kernel distance.
    """

    def __init__(
        self, num_features: int, num_classes: int = 0, *, sample_size: int = SAMPLE_SIZE, seed: int = 0
    ) -> None:
        self.num_classes, self.seed = num_classes, seed
        self._distance = FrechetDistance(num_features)
        self._samples = [FeatureSample(sample_size, num_features, seed) for _ in range(2)]
        # For each split: the sum of each class's probabilities, the sum of p log p, and the number of images.
        self._score = ExactSum(SCORE_SPLITS, num_classes + 2)
        self._counts = torch.zeros(2, dtype=torch.int64)

    @torch.no_grad()
    def update(self, features: Features, indices: torch.Tensor, generated: bool) -> None:
        """Adds images to one of the two sets.

        Args:
            features: Features of the batch.
            indices: Numbers of the images in their set, (batch,).
            generated: Whether the images are generated ones.
        """
        self._counts[int(generated)] += len(indices)
        self._distance.update(features.values, generated)
        self._samples[int(generated)].update(features.values, indices)
        if generated and self.num_classes:
            assert features.logits is not None
            logs = features.logits.cpu().double().log_softmax(-1)
            terms = [logs.exp(), (logs.exp() * logs).sum(-1, keepdim=True), torch.ones_like(logs[:, :1])]
            sums = torch.zeros(SCORE_SPLITS, self.num_classes + 2, dtype=torch.float64)
            self._score.add(sums.index_add(0, indices.cpu() % SCORE_SPLITS, torch.cat(terms, -1))[None])

    def compute(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Computes the metrics over all processes. Every process must call it.

        Returns:
            `num_reference`, `num_generated`, `frechet` and `kernel`. `kernel_std` if there were several subsets.
            `precision` and `recall` if the samples have more images than `NEIGHBORS`. `score` and `score_std` if the
            extractor gives logits.

        Raises:
            ValueError: If one of the sets has fewer than two images.
        """
        counts = sum_over_processes(self._counts, accelerator).tolist()
        metrics: dict[str, float] = {"num_reference": counts[0], "num_generated": counts[1]}
        metrics["frechet"] = self._distance.compute(accelerator)
        reference, generated = (sample.compute(accelerator) for sample in self._samples)
        metrics |= kernel_distance(reference, generated, self.seed)
        if min(len(reference), len(generated)) > NEIGHBORS:
            metrics |= precision_recall(reference, generated)
        if self.num_classes:
            metrics |= _inception_score(self._score.compute(accelerator))
        return metrics

    def estimators(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Describes, for a protocol, how the numbers that `compute` returned were estimated."""
        names = ("num_reference", "num_generated")
        kept = [min(sample.size, int(metrics[name])) for sample, name in zip(self._samples, names, strict=True)]
        subsets, size = _kernel_subsets(*kept)
        found: dict[str, Any] = {
            "kernel": {"kernel": "polynomial, degree 3", "subsets": subsets, "subset_size": size},
        }
        if "precision" in metrics:
            found["precision_recall"] = {"neighbors": NEIGHBORS, "reference": kept[0], "generated": kept[1]}
        if "score" in metrics:
            found["score"] = {"splits": min(SCORE_SPLITS, int(metrics["num_generated"]))}
        return found | {"seed": self.seed}


def kernel_distance(reference: torch.Tensor, generated: torch.Tensor, seed: int = 0) -> dict[str, float]:
    """Computes the squared maximum mean discrepancy of two sets under a cubic kernel, as KID does (arXiv 1801.01401).

    The arithmetic is torchmetrics'. That metric keeps everything it is given, so it gets a sample. It also draws from
    the global random numbers, so it gets a seed of its own.

    Args:
        reference: Features (n, num_features).
        generated: Features (m, num_features).
        seed: Draws the subsets.

    Returns:
        `kernel` and `kernel_std`, the mean and the deviation over 100 subsets of 1000 images. Smaller sets of equal
        size form one subset. Then there is no `kernel_std`.

    Raises:
        ValueError: If one of the sets has fewer than two images.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    _require_two(min(len(reference), len(generated)))
    subsets, size = _kernel_subsets(len(reference), len(generated))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators, too
        metric = KernelInceptionDistance(
            feature=_Given(reference.shape[1]), subsets=subsets, subset_size=size, sync_on_compute=False
        )
        metric.update(reference.double(), real=True)
        metric.update(generated.double(), real=False)
        mean, deviation = metric.compute()
    return {"kernel": float(mean)} | ({"kernel_std": float(deviation)} if subsets > 1 else {})


def precision_recall(reference: torch.Tensor, generated: torch.Tensor, neighbors: int = NEIGHBORS) -> dict[str, float]:
    """Computes improved precision and recall (arXiv 1904.06991).

    No library that installs without torchvision has them.

    Args:
        reference: Features (n, num_features).
        generated: Features (m, num_features).
        neighbors: The ball around an image reaches to its neighbor of this rank in its own set. Fewer than n and m.

    Returns:
        `precision` is the share of the generated images within a ball of a reference image. `recall` is the share of
        the reference images within a ball of a generated image.

    Raises:
        ValueError: If a set has too few images.
    """
    if min(len(reference), len(generated)) <= neighbors:
        raise ValueError(
            f"{neighbors} neighbors need more images than that in each set, got {len(reference)} and "
            f"{len(generated)}. Add images, or use fewer neighbors."
        )
    reference, generated = reference.double(), generated.double()
    return {
        "precision": _share_within(generated, reference, neighbors),
        "recall": _share_within(reference, generated, neighbors),
    }


def _share_within(points: torch.Tensor, centers: torch.Tensor, neighbors: int) -> float:
    # In parts, because all distances of large sets do not fit in memory at once. The nearest point of a point's own
    # set is the point itself.
    radii = torch.cat(
        [torch.cdist(part, centers).kthvalue(neighbors + 1, dim=1).values for part in centers.split(1024)]
    )
    hits = sum(int((torch.cdist(part, centers) <= radii).any(1).sum()) for part in points.split(1024))
    return hits / len(points)


def _inception_score(sums: torch.Tensor) -> dict[str, float]:
    """Computes the Inception Score by splits (arXiv 1606.03498).

    The score is the exponential of the mean divergence of each image's classes from all images' classes. torchmetrics
    has the same arithmetic, but it keeps all logits and cuts the splits at random.
    """
    sums = sums[sums[:, -1] > 0]
    means = sums[:, :-1] / sums[:, -1:]
    marginal = means[:, :-1]
    scores = (means[:, -1] - torch.xlogy(marginal, marginal).sum(-1)).exp()
    return {"score": float(scores.mean()), "score_std": float(scores.std(unbiased=False))}


def _kernel_subsets(num_reference: int, num_generated: int) -> tuple[int, int]:
    """Returns the number and the size of the subsets. If all subsets would be the same, there is only one."""
    size = min(KERNEL_SUBSET_SIZE, num_reference, num_generated)
    return (1 if size == num_reference == num_generated else KERNEL_SUBSETS), size


def _require_two(count: int) -> None:
    if count < 2:
        raise ValueError(f"A distance needs at least two images of each kind, got {count}. Add images.")


class _Given(torch.nn.Module):
    """Stands in for torchmetrics' extractor where features are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the features as they are."""
        return features
