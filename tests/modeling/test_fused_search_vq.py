"""The compiled search finds the codes of the search by stored scores, and compiles seldom."""

from collections.abc import Callable

import pytest
import torch

from hf_vq.modeling import fused_search_vq
from hf_vq.modeling.nearest_vq import nearest_code

pytestmark = pytest.mark.compiles


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Compiles for any amount of work, and forgets what other tests compiled or failed to."""
    monkeypatch.setattr(fused_search_vq, "_WORK", 0)
    monkeypatch.setattr(fused_search_vq, "_has_failed", False)


def both(vectors: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids by stored scores and by the compiled loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_VQ_COMPILE_SEARCH", "0")
        stored = nearest_code(vectors, codes)
    found = nearest_code(vectors, codes)
    assert not fused_search_vq._has_failed
    return stored, found


def forget(monkeypatch) -> dict:
    """Kernels of this test alone."""
    kernels: dict = {}
    monkeypatch.setattr(fused_search_vq, "_kernels", kernels)
    return kernels


VECTORS: dict[str, Callable[[int, int], torch.Tensor]] = {
    "normal": torch.randn,
    "ties": lambda rows, dim: torch.randint(-2, 3, (rows, dim)).float(),
    "far from the origin": lambda rows, dim: 1000 + 0.01 * torch.randn(rows, dim),
    "one far out": lambda rows, dim: torch.cat([torch.randn(rows - 1, dim), torch.full((1, dim), 1e4)]),
    "tiny": lambda rows, dim: 1e-20 * torch.randn(rows, dim),
    "huge": lambda rows, dim: 1e19 * torch.randn(rows, dim),
    "all the same": lambda rows, dim: torch.ones(rows, dim),
}


@pytest.mark.parametrize("kind", VECTORS)
def test_finds_the_same_codes(kind):
    """The ids are equal where rounding and ties decide, too, and past a whole number of chunks and blocks."""
    torch.manual_seed(0)
    codes = VECTORS[kind](300, 4)
    codes = torch.cat([codes, codes[:33]])
    stored, found = both(VECTORS[kind](2500, 4), codes)

    assert fused_search_vq._kernels
    assert torch.equal(stored, found)


def test_vectors_that_are_not_finite():
    """NaN and infinity end with the same ids as well."""
    vectors = torch.randn(2048, 4)
    vectors[3, 1], vectors[5, 0], vectors[7] = torch.nan, torch.inf, -torch.inf
    stored, found = both(vectors, torch.randn(333, 4))

    assert torch.equal(stored, found)


def test_near_ties_are_what_the_margin_is_for(monkeypatch):
    """Codes that differ in the last bits are told apart only with the margin of rounding."""
    torch.manual_seed(0)
    half = torch.randn(160, 4)
    codes = torch.cat([half, half * (1 + 1e-7)])
    vectors = torch.randn(20480, 4)
    stored, found = both(vectors, codes)
    assert torch.equal(stored, found)

    run = fused_search_vq._run
    monkeypatch.setattr(
        fused_search_vq, "_run", lambda *inputs: (run(*inputs)[0], torch.ones(20480, dtype=torch.bool))
    )
    assert not torch.equal(stored, nearest_code(vectors, codes))


def test_one_compilation_for_any_number_of_vectors(monkeypatch):
    """Another number of vectors compiles nothing, another size of codebook does it once, and no size turns dynamic."""
    forget(monkeypatch)
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for num_codes in (333, 400):
        for num_vectors in (1024, 4096, 2048, 5000, 1024):
            nearest_code(torch.randn(num_vectors, 3), torch.randn(num_codes, 3))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                nearest_code(torch.randn(num_vectors, 3), torch.randn(num_codes, 3))

    assert graphs["unique_graphs"] == before + 2


def test_little_work_compiles_nothing(monkeypatch):
    """The first searches of a size are not compiled, nor are few codes, many dimensions and float64."""
    kernels = forget(monkeypatch)
    monkeypatch.setattr(fused_search_vq, "_work", fused_search_vq.Counter())
    monkeypatch.setattr(fused_search_vq, "_WORK", 3 * 2048 * 4 * 352)
    for _ in range(3):
        nearest_code(torch.randn(2048, 4), torch.randn(333, 4))
    assert not kernels

    monkeypatch.setattr(fused_search_vq, "_WORK", 0)
    nearest_code(torch.randn(2048, 4), torch.randn(100, 4))
    nearest_code(torch.randn(2048, 64), torch.randn(333, 64))
    nearest_code(torch.randn(2048, 4).double(), torch.randn(333, 4).double())
    nearest_code(torch.randn(100, 4), torch.randn(333, 4))
    assert not kernels


def test_without_a_compiler_the_search_goes_on(monkeypatch, caplog):
    """There is one warning, the same ids, and no second attempt."""
    forget(monkeypatch)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/no/compiler",))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    vectors, codes = torch.randn(2048, 4), torch.randn(340, 4)
    found = [nearest_code(vectors, codes) for _ in range(3)]

    assert fused_search_vq._has_failed
    assert all(torch.equal(ids, found[0]) for ids in found)
    warnings = [record.message for record in caplog.records if "HF_VQ_COMPILE_SEARCH" in record.message]
    assert len(warnings) == 1


def test_where_torch_compile_is_turned_off_nothing_stores_all_scores(monkeypatch):
    """The function that would be compiled refuses to run as it is written."""
    forget(monkeypatch)
    vectors, codes = torch.randn(2048, 4), torch.randn(340, 4)
    with torch.compiler.set_stance("force_eager"):
        found = nearest_code(vectors, codes)

    assert fused_search_vq._has_failed
    monkeypatch.setenv("HF_VQ_COMPILE_SEARCH", "0")
    assert torch.equal(found, nearest_code(vectors, codes))


def test_transforms_and_modes_take_the_other_search(monkeypatch):
    """Under fake tensors and counters of operations nothing is compiled."""
    kernels = forget(monkeypatch)
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode():
        assert nearest_code(torch.randn(2048, 4), torch.randn(340, 4)).shape == (2048,)
    with FlopCounterMode(display=False) as counter:
        nearest_code(torch.randn(2048, 4), torch.randn(340, 4))

    assert counter.get_total_flops() > 0
    assert not kernels
