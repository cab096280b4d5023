"""Snapshots of a codebook: distances of moments, and files."""

from pathlib import Path

import pytest
import torch

from hf_vq.training.snapshots import CodebookSnapshot, load_snapshots, moment_distances


def snapshot(step: int) -> CodebookSnapshot:
    """A snapshot of 7 embeddings and 3 of 5 codes."""
    generator = torch.Generator().manual_seed(step)
    return CodebookSnapshot(
        step=step,
        metrics={"perplexity": 2.5, "gradient_gap": 1e-7},
        embeddings=torch.randn(7, 2, generator=generator),
        codes=torch.randn(3, 2, generator=generator),
        code_ids=torch.tensor([0, 2, 4]),
        uses=torch.tensor([3, 1, 0, 0, 9]),
    )


def test_snapshots_come_back_in_the_order_of_their_steps(tmp_path: Path):
    """Everything is read as it was written; other files and steps of any length do not disturb."""
    for step in (20_000_000, 100, 3):
        snapshot(step).save(tmp_path / CodebookSnapshot.file_name(step))
    (tmp_path / ".tmp-step-0000007.safetensors").write_bytes(b"half")
    found = load_snapshots(tmp_path)

    assert [one.step for one in found] == [3, 100, 20_000_000]
    for one in found:
        expected = snapshot(one.step)
        assert one.metrics == expected.metrics
        for name in ("embeddings", "codes", "code_ids", "uses"):
            assert torch.equal(getattr(one, name), getattr(expected, name))
        assert one.used.tolist() == [True, False, True] and one.active_codes == 3


def test_a_folder_without_snapshots_is_an_error(tmp_path: Path):
    """The message says how snapshots are made."""
    with pytest.raises(FileNotFoundError, match="train with monitor_steps > 0"):
        load_snapshots(tmp_path)


def test_distances_of_equal_moments_are_zero():
    """A match is 0 in each of them, also with correlated features."""
    root = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distances = moment_distances(torch.ones(4).double(), root @ root.T, torch.ones(4).double(), root @ root.T)

    assert distances.pop("spread") == pytest.approx(float((root @ root.T).trace() ** 0.5))
    assert all(distance < 1e-6 for distance in distances.values())


def test_distances_are_in_units_of_the_spread():
    """Shift and scale with known distances: W_2^2 of commuting Gaussians is |m - m'|^2 + sum (s - s')^2."""
    shift = torch.tensor([3.0, 0.0]).double()
    stds, other = torch.tensor([3.0, 4.0]).double(), torch.tensor([3.0, 0.0]).double()
    distances = moment_distances(torch.zeros(2).double(), (stds**2).diag(), shift, (other**2).diag())

    assert distances == pytest.approx(
        {"spread": 5.0, "mean_distance": 3 / 5, "std_distance": 4 / 5, "wasserstein_distance": 1.0}
    )


def test_rotated_codes_are_far_only_in_covariance():
    """Moments of single features do not see a correlation; the Wasserstein distance does."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double()
    zero = torch.zeros(2).double()
    distances = moment_distances(zero, torch.eye(2).double(), zero, covariance)

    assert distances["std_distance"] < 1e-9
    expected = ((1 - 1.9**0.5) ** 2 + (1 - 0.1**0.5) ** 2) ** 0.5 / 2**0.5  # by the eigenvalues 1.9 and 0.1
    assert distances["wasserstein_distance"] == pytest.approx(expected)


def test_codes_and_embeddings_without_variance_have_finite_distances():
    """A dead encoder gives numbers, not NaN."""
    zero = torch.zeros(2).double()

    assert moment_distances(zero, torch.zeros(2, 2).double(), zero, torch.zeros(2, 2).double()) == {
        "spread": 0.0, "mean_distance": 0.0, "std_distance": 0.0, "wasserstein_distance": 0.0,
    }  # fmt: skip
