"""The search for codes runs in full float32, and leaves torch's settings of precision as they were."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_vq import VectorQuant
from hf_vq.modeling.nearest_vq import nearest_code
from hf_vq.modeling.precision_vq import ieee_matmul

SETTINGS = [("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("mkldnn", "all"), ("mkldnn", "matmul")]
HIGH = ("ieee", "none")
HAS_ONE_SETTING = not hasattr(torch._C, "_get_fp32_precision_getter")  # before torch 2.9
several_settings = pytest.mark.skipif(HAS_ONE_SETTING, reason="this version of torch has one setting for all products")


def _get(setting: tuple[str, str]) -> str:
    return torch._C._get_fp32_precision_getter(*setting)


def _set(setting: tuple[str, str], precision: str) -> None:
    torch._C._set_fp32_precision_setter(*setting, precision)


@pytest.fixture(autouse=True)
def settings():
    """Starts from torch's own settings, and leaves them so."""

    def reset() -> None:
        torch.set_float32_matmul_precision("highest")
        for setting in [] if HAS_ONE_SETTING else SETTINGS:
            _set(setting, "none")

    reset()
    yield
    reset()
    torch.compiler.reset()


class _Products(TorchDispatchMode):
    """Notes what holds for the products of both backends while one runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "addmm" in str(func):
            one = torch.get_float32_matmul_precision() if HAS_ONE_SETTING else None
            self.seen.append((one, one) if one else (_get(("cuda", "matmul")), _get(("mkldnn", "matmul"))))
        return func(*args, **(kwargs or {}))


def _change(group: tuple[str, str], precision: str) -> list[str]:
    """What holds everywhere while a group has another setting."""
    before = _get(group)
    _set(group, precision)
    held = [_get(setting) for setting in SETTINGS]
    _set(group, before)
    return held


@several_settings
@pytest.mark.parametrize("everything", ["none", "ieee", "tf32", "bf16"])
def test_inherited_settings_are_still_inherited_afterwards(everything):
    """A forward pins nothing: later settings of a group have the effect that they would have had without it."""
    for whole, products in itertools.product(["none", "ieee", "tf32"], repeat=2):

        def prepare(whole=whole, products=products) -> None:
            for setting in SETTINGS:
                _set(setting, "none")
            if everything != "bf16":
                _set(("cuda", "all"), whole)
                _set(("cuda", "matmul"), products)
            _set(("mkldnn", "all"), whole)
            _set(("mkldnn", "matmul"), products)
            _set(("generic", "all"), everything)

        held = {}
        for forward in (False, True):
            prepare()
            if forward:
                with _Products() as mode:
                    nearest_code(torch.randn(10, 4), torch.randn(40, 4))
                assert len(mode.seen) == 1
                assert all(precision in HIGH for precision in mode.seen[0])
            held[forward] = [[_get(setting) for setting in SETTINGS], _change(("generic", "all"), "ieee")]
            prepare()
            if forward:
                nearest_code(torch.randn(10, 4), torch.randn(40, 4))
            held[forward] += [_change(("generic", "all"), "tf32"), _change(("mkldnn", "all"), "ieee")]
        assert held[True] == held[False], (everything, whole, products)


def test_the_older_flags_hold_as_well():
    """`set_float32_matmul_precision` does not lower the search, and stays in force after it."""
    torch.set_float32_matmul_precision("medium")
    with _Products() as mode:
        nearest_code(torch.randn(10, 4), torch.randn(40, 4))

    full = "highest" if HAS_ONE_SETTING else "ieee"
    assert mode.seen == [(full, full)]
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(ValueError, match="inside"), ieee_matmul():
        raise ValueError("inside")
    assert torch.get_float32_matmul_precision() == "medium"
    assert HAS_ONE_SETTING or _get(("cuda", "matmul")) == "tf32"


@several_settings
@pytest.mark.parametrize("first", ["none", "tf32", "bf16"])
def test_the_compiled_search_is_exact(first):
    """Compiled while torch allows less, the search finds what it finds without; no flag makes it raise."""
    torch.manual_seed(0)
    layer = VectorQuant(64, 512, dim=-1).eval()
    z = torch.randn(1000, 64)
    expected = layer(z)[1].q
    _set(("generic", "all"), first)
    found = torch.compile(layer, backend="eager", fullgraph=True)(z)[1].q

    assert torch.equal(found, expected)


@several_settings
def test_it_compiles_after_old_and_new_settings_were_mixed():
    """Where torch's older flag raises, since newer settings differ from it, the search still compiles."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    layer = VectorQuant(4, 16, dim=-1).eval()
    z = torch.randn(10, 4)

    assert torch.equal(torch.compile(layer, backend="eager")(z)[1].q, layer(z)[1].q)
    assert layer(z)[1].q.shape == (10, 1)
