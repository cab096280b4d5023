"""The nearest-code search is exact, and small in memory."""

import subprocess
import sys

import pytest
import torch

from hf_vq.modeling.nearest_vq import nearest_code


def squared_distances(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Computes squared distances in float64 without expanding the square."""
    return torch.cdist(vectors.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


@pytest.mark.parametrize("num_codes", [1, 2, 31, 32, 33, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finds_the_nearest_code(num_codes, dtype):
    """Well separated codes are found for any number of codes, also past a whole number of blocks."""
    torch.manual_seed(0)
    codes = 10 * torch.randn(num_codes, 16, dtype=dtype)
    expected = torch.randint(num_codes, (500,))
    vectors = codes[expected] + 0.01 * torch.randn(500, 16, dtype=dtype)

    assert torch.equal(nearest_code(vectors, codes), expected)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (100.0, 1.0), (100.0, 0.1), (-1e4, 1.0)])
def test_excess_distance_stays_under_the_stated_bound(mean, std):
    """Far from the origin, where expanded float32 distances fail, the documented bound holds for every vector."""
    torch.manual_seed(0)
    dim = 64
    vectors, codes = mean + std * torch.randn(2000, dim), mean + std * torch.randn(1024, dim)

    index = nearest_code(vectors, codes)

    exact = squared_distances(vectors, codes)
    excess = exact.gather(1, index[:, None]).squeeze(1) - exact.amin(1)
    center = codes.double().mean(0)
    code_norms = (codes.double() - center).norm(dim=1)
    vector_norms = (vectors.double() - center).norm(dim=1)
    unit = torch.finfo(torch.float32).eps / 2
    # Rounding the centered inputs themselves moves them by one unit of their distance to the origin.
    rounding = 4 * unit * max(abs(mean), 1) * dim**0.5 * (vector_norms + code_norms.max())
    bound = 4 * (dim + 2) * unit * code_norms.max() * (vector_norms + code_norms.max()) + rounding
    assert (excess <= bound).all()
    agreement = (index == exact.argmin(1)).double().mean()
    assert agreement > 0.999


def test_the_plain_expansion_would_fail_where_ours_holds():
    """The offset test can fail: without centering, more than a tenth of the vectors get another code."""
    torch.manual_seed(0)
    vectors, codes = 100 + 0.1 * torch.randn(2000, 64), 100 + 0.1 * torch.randn(1024, 64)
    exact = squared_distances(vectors, codes).argmin(1)
    plain = (codes.square().sum(1) - 2 * vectors @ codes.T).argmin(1)

    assert (plain != exact).double().mean() > 0.1
    assert (nearest_code(vectors, codes) != exact).double().mean() < 0.001


def test_ties_go_to_the_lowest_index():
    """Duplicated codes never win over their first copy, wherever the copies stand."""
    torch.manual_seed(0)
    for num_codes in (5, 40, 333, 1024):
        first = torch.randn(num_codes, 8)
        codes = torch.cat([first, first.flip(0), first])
        index = nearest_code(torch.randn(300, 8), codes)

        assert index.max() < num_codes
    grid = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
    assert nearest_code(torch.zeros(3, 1), grid).tolist() == [0, 0, 0]


def test_no_vectors_and_vectors_that_are_not_finite():
    """Empty input gives an empty result, and NaN and infinity give an id that exists."""
    codes = torch.randn(33, 4)
    assert nearest_code(torch.empty(0, 4), codes).shape == (0,)
    odd = torch.full((3, 4), torch.nan)
    odd[1] = torch.inf
    assert nearest_code(odd, codes).max() < 33


def test_results_do_not_depend_on_the_chunk(monkeypatch):
    """The same ids come out however small the chunks are."""
    torch.manual_seed(0)
    vectors, codes = torch.randn(777, 5), torch.randn(100, 5)
    whole = nearest_code(vectors, codes)
    monkeypatch.setattr("hf_vq.modeling.nearest_vq._CPU_SCORES", 128)

    assert torch.equal(nearest_code(vectors, codes), whole)


# VmHWM, because this process inherits the peak that `resource` reports from the process that started it.
MEMORY = """
import re, torch
from pathlib import Path
from hf_vq import VectorQuant
torch.set_num_threads(1)
layer = VectorQuant(256, 16384, dim=-1).eval()
z = torch.randn(16384, 256)
with torch.no_grad():
    layer(z[:64])
    peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    before = peak()
    out = layer(z)
    print(peak() - before)
"""


def test_sixteen_thousand_codes_and_vectors_fit_in_128_mib():
    """Peak memory of a whole eval forward at N = K = 16,384, D = 256 grows by less than 128 MiB."""
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)

    assert 16 < float(result.stdout) < 128  # the ids and one copy of the vectors alone take 16
