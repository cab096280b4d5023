"""Metrics: known values, independence of batches, and the same numbers from one process and from two."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_vq.cards.tokenizer import METRICS
from hf_vq.evaluation.report import metric
from hf_vq.metrics import reconstruction
from hf_vq.metrics.base import ExactSum, bits_per_image, perplexity
from hf_vq.metrics.reconstruction import IMAGE_METRICS, ImageMetric, TokenizerMetrics


def batch(count: int, seed: int = 0, size: int = 16) -> tuple[torch.Tensor, ...]:
    """Images, reconstructions, tokens and errors of each vector."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    decoded = images + 0.2 * torch.randn(count, 3, size, size, generator=generator)
    tokens = torch.randint(0, 20, (count, 4, 4), generator=generator)
    return images, decoded, tokens, torch.rand(count, 4, 4, generator=generator)


def test_perplexity_counts_equally_used_codes():
    """N equally used codes have a perplexity of N, one code has 1, and no code has 0."""
    assert perplexity(torch.tensor([5, 5, 5, 0])) == pytest.approx(3)
    assert perplexity(torch.tensor([7, 0])) == 1
    assert perplexity(torch.zeros(4)) == 0


def test_exact_sums_do_not_depend_on_the_order():
    """Terms of all sizes, in any order and in any batches, give the same bits, right to 14 digits."""
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(1000, 3, generator=generator, dtype=torch.float64) * 10 ** torch.linspace(-9, 3, 1000)[:, None]
    sums = [ExactSum(3) for _ in range(3)]
    sums[0].add(terms)
    for part in terms.flip(0).split(7):
        sums[1].add(part)
    for term in terms[torch.randperm(1000, generator=generator)]:
        sums[2].add(term[None])
    first, second, third = (total.compute() for total in sums)

    assert torch.equal(first, second) and torch.equal(first, third)
    assert first.tolist() == pytest.approx([math.fsum(column) for column in terms.T.tolist()], abs=1e-11)


def test_bits_are_those_of_the_codes():
    """The fixed length follows the codes of each codebook. The entropy is less if codes are not used equally."""
    assert bits_per_image(64, 1024, 1024.0) == {"bits_per_image": 640, "entropy_bits_per_image": 640}
    assert bits_per_image(64, 1024, 32.0)["entropy_bits_per_image"] == 320
    # With two codebooks of four codes each, eight equally used codes are two bits for each token.
    assert bits_per_image(10, 8, 8.0, num_codebooks=2) == {"bits_per_image": 20, "entropy_bits_per_image": 20}
    assert bits_per_image(10, 8, 1.0, num_codebooks=1)["entropy_bits_per_image"] == 0


def test_values_are_those_of_the_formulas():
    """Each metric has its textbook value, on images in [0, 1]."""
    images = torch.zeros(2, 3, 16, 16)
    decoded = images + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    metrics = TokenizerMetrics(8)
    metrics.update(images, decoded, torch.tensor([0, 0, 3, 3]), torch.tensor(0.5))

    values = metrics.compute()
    assert values["num_images"] == 2
    assert values["mse"] == pytest.approx((0.01 + 0.0001) / 2, rel=1e-5)
    assert values["psnr"] == pytest.approx((20 + 40) / 2, rel=1e-5)
    assert values["usage"] == 0.25 and values["active_codes"] == 2 and values["perplexity"] == pytest.approx(2)
    assert values["quantization_error"] == 0.5


def test_ssim_follows_its_formula():
    """SSIM has the Gaussian window of 11 pixels and the constants of Wang et al. 2004, image by image."""
    images, decoded, *_ = batch(2)
    metrics = TokenizerMetrics(8)
    metrics.update(images, decoded)

    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def smooth(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect")
        return np.einsum("...ij,ij", np.lib.stride_tricks.sliding_window_view(padded, (11, 11), (2, 3)), window)

    x, y = ((values.clamp(-1, 1).double().numpy() + 1) / 2 for values in (images, decoded))
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y, cov = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2, smooth(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    expected = (luminance * (2 * cov + 0.03**2) / (var_x + var_y + 0.03**2)).mean()
    assert metrics.compute()["ssim"] == pytest.approx(expected, abs=1e-9)


def test_reconstructions_are_clamped_before_they_are_judged():
    """Values beyond white cost nothing, because a picture cannot show them. A perfect image has 100 dB."""
    metrics = TokenizerMetrics(8)
    metrics.update(torch.ones(1, 1, 16, 16), torch.full((1, 1, 16, 16), 3.0))

    assert metrics.compute() == {"num_images": 1, "mse": 0.0, "psnr": 100.0, "ssim": pytest.approx(1.0)}


def test_batching_leaves_no_trace():
    """Uneven batches, and empty ones, give the numbers of one large batch."""
    data = batch(10)
    whole, parts = TokenizerMetrics(20), TokenizerMetrics(20)
    whole.update(*data)
    for rows in (slice(0, 7), slice(7, 7), slice(7, 10)):
        parts.update(*(x[rows] for x in data))

    assert torch.equal(whole.code_counts(), parts.code_counts())
    for name, value in whole.compute().items():
        assert parts.compute()[name] == pytest.approx(value, rel=1e-12), name


def test_memory_does_not_grow_with_the_images():
    """Memory is the same after one batch as after twenty."""
    metrics, sizes = TokenizerMetrics(20), []
    for seed in range(20):
        metrics.update(*batch(4, seed))
        sizes.append(len(pickle.dumps(metrics)))

    assert metrics.compute()["num_images"] == 80
    assert max(sizes) - min(sizes) < 100


def test_metrics_of_tiny_images_leave_ssim_out():
    """Images smaller than the window of SSIM have the other metrics, and no NaN that would spoil a log."""
    metrics = TokenizerMetrics(8)
    metrics.update(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))

    assert "ssim" not in metrics.compute()
    assert all(math.isfinite(value) for value in metrics.compute().values())


def test_bad_input_is_refused():
    """Out-of-range tokens, different shapes and an empty data set each have their message."""
    metrics = TokenizerMetrics(8)
    images = torch.zeros(1, 3, 16, 16)

    with pytest.raises(ValueError, match=r"\[0, 8\), got \[1, 8\]"):
        metrics.update(images, images, torch.tensor([1, 8]))
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(1, 1, 16, 16\)"):
        metrics.update(images, images[:, :1])
    with pytest.raises(ValueError, match="no images"):
        metrics.compute()


WORKER = """
import json, runpy, sys, torch
from pathlib import Path
TokenizerMetrics = runpy.run_path(sys.argv[4])["TokenizerMetrics"]  # the module alone: the package takes seconds more
rank = int(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
data = torch.load(sys.argv[1])
metrics = TokenizerMetrics(20)
rows = slice(0, 7) if rank == 0 else slice(7, 10)
metrics.update(*(x[rows] for x in data))
result = {"metrics": [metrics.compute(), metrics.compute()], "counts": metrics.code_counts().tolist()}
Path(sys.argv[2] + str(rank)).write_text(json.dumps(result))
torch.distributed.destroy_process_group()
"""


def test_two_processes_give_the_numbers_of_one(tmp_path: Path):
    """Two real processes with unequal shares of the images agree bit for bit with each other and with a single one."""
    data = batch(10, size=8)
    torch.save(data, tmp_path / "data.pt")
    (tmp_path / "worker.py").write_text(WORKER)
    single = TokenizerMetrics(20)
    single.update(*data)

    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "data.pt"), str(tmp_path / "result")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(rank), reconstruction.__file__], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]

    ours, theirs = (json.loads((tmp_path / f"result{rank}").read_text()) for rank in range(2))
    assert ours == theirs
    assert ours["counts"] == single.code_counts().tolist()
    first, second = ours["metrics"]
    assert first == second  # computing twice adds nothing
    for name, value in single.compute().items():
        assert first[name] == pytest.approx(value, rel=1e-12), name


def test_a_metric_of_images_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new row is measured; cards and reports show all rows of the table as it says."""
    row = ImageMetric("MAE", "{:.5f}", False, lambda image, decoded: (image - decoded).abs().flatten(1).mean(1).cpu())
    monkeypatch.setitem(IMAGE_METRICS, "mae", row)
    metrics = TokenizerMetrics(4)
    metrics.update(torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.5))

    assert metrics.compute()["mae"] == pytest.approx(0.25)
    for key in set(IMAGE_METRICS) - {"mae"}:
        shown, reported = METRICS[key], metric(key, "tokenizer", "any")
        assert (shown.title, shown.format) == IMAGE_METRICS[key][:2]
        assert reported is not None and reported[:3] == IMAGE_METRICS[key][:3]
