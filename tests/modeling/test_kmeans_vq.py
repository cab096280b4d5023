"""K-means finds clusters and never leaves a code unset or doubled."""

import pytest
import torch

from hf_vq.modeling import kmeans_vq
from hf_vq.modeling.kmeans_vq import kmeans, make_distinct


def test_every_tight_blob_gets_a_centroid():
    """With as many codes as blobs, each blob is found (random seeds would miss about a third)."""
    torch.manual_seed(0)
    centers = 20 * torch.randn(64, 8)
    vectors = (centers[:, None] + 0.01 * torch.randn(64, 50, 8)).flatten(0, 1)

    codes = kmeans(vectors, 64)

    assert (torch.cdist(centers, codes).amin(1) < 0.1).all()


def test_seeds_drawn_in_rounds_cover_the_blobs_too(monkeypatch):
    """Drawing several seeds in a round, as for very large codebooks, still covers the data."""
    monkeypatch.setattr(kmeans_vq, "_MAX_ROUNDS", 16)
    torch.manual_seed(0)
    centers = 20 * torch.randn(32, 8)
    vectors = (centers[:, None] + 0.01 * torch.randn(32, 50, 8)).flatten(0, 1)

    codes = kmeans(vectors, 128)

    assert (torch.cdist(centers, codes).amin(1) < 0.1).all()


def test_iterations_reduce_the_error():
    """Lloyd's steps lower the mean squared distance below that of the seeds."""
    torch.manual_seed(0)
    vectors = torch.randn(2000, 4)

    def error(num_iterations: int) -> float:
        torch.manual_seed(1)
        return torch.cdist(vectors, kmeans(vectors, 50, num_iterations)).amin(1).square().mean().item()

    assert error(10) < 0.9 * error(0)


@pytest.mark.parametrize(
    "vectors",
    [torch.zeros(10, 4), torch.ones(1, 4), torch.full((500, 4), 1e6), torch.eye(4).repeat(100, 1)],
    ids=["zeros", "one vector", "equal", "four distinct"],
)
def test_fewer_distinct_vectors_than_codes_leave_no_code_unset_or_doubled(vectors):
    """All rows are finite and differ, and each distinct vector is still represented."""
    torch.manual_seed(0)

    codes = kmeans(vectors, 64)

    assert codes.shape == (64, 4)
    assert codes.isfinite().all()
    assert len(codes.unique(dim=0)) == 64
    distinct = vectors.unique(dim=0)
    assert (torch.cdist(distinct, codes).amin(1) <= 0.05 * distinct.norm(dim=1) + 0.05).all()


def test_distinct_rows_are_left_alone():
    """Only repeated rows move. The first of equal rows stays."""
    codes = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    torch.manual_seed(0)

    result = make_distinct(codes)

    assert torch.equal(result[:2], codes[:2])
    assert not torch.equal(result[2], codes[2])


def test_fewer_distinct_vectors_than_codes_than_vectors_leave_no_near_twins():
    """Repeated vectors give one exact centroid each, and the codes left over are visibly jittered."""
    torch.manual_seed(0)
    distinct = torch.randn(10, 4)

    codes = kmeans(distinct.repeat(7, 1), 20)

    gaps = torch.cdist(codes, codes, compute_mode="donot_use_mm_for_euclid_dist") + 10 * torch.eye(20)
    assert gaps.amin() > 1e-4
    assert torch.cdist(distinct, codes).amin(1).max() < 1e-5
