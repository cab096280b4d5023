"""docs/coming-from-vqtorch.md is true, row by row. vqtorch itself cannot be installed without CUDA.

What it computes is in tests/data/vqtorch_reference.safetensors, and tests/modeling/test_reference.py compares it.
"""

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import hf_vq
from hf_vq import GroupVectorQuant, MaxVecPool2d, ProjectedQuant, ResidualVectorQuant, SoftMaxVecPool2d, VectorQuant

from .pages import Page

PAGE = Page("coming-from-vqtorch.md")


@PAGE.row("`feature_size, num_codes, beta, sync_nu, affine_lr, affine_groups, replace_freq`")
def _arguments() -> None:
    parameters = list(inspect.signature(VectorQuant).parameters.values())[:7]
    assert [(each.name, each.default) for each in parameters[2:]] == [
        ("beta", 0.95), ("sync_nu", 0.0), ("affine_lr", 0.0), ("affine_groups", 1), ("replace_freq", 0),
    ]  # fmt: skip
    layer = VectorQuant(8, 16, beta=1.0)
    z = torch.randn(4, 8, 5, requires_grad=True)
    layer(z)[1].loss.backward()
    assert (z.grad is None or not z.grad.any()) and layer.codebook.weight.grad is not None


@PAGE.row('`norm="l2"`')
def _unit_norm() -> None:
    out = VectorQuant(8, 16, norm="l2")(5 * torch.randn(4, 8, 5))[1]
    torch.testing.assert_close(out.z.norm(dim=-1), torch.ones(4, 5, 1))


@PAGE.row('`cb_norm="l2"`', '`cb_norm="l2c"`')
def _norms_of_codes() -> None:
    for norm, expected in (("clip", lambda norms: norms.clamp_max(10)), ("l2", torch.ones_like)):
        layer = VectorQuant(8, 16, cb_norm=norm)
        nn.init.normal_(layer.codebook.weight, std=4)
        raw = layer.codebook.weight.detach().norm(dim=-1)
        assert raw.min() < 10 < raw.max()
        torch.testing.assert_close(layer.get_codebook().norm(dim=-1), expected(raw))
    with pytest.raises(ValueError, match="'l2c' is ambiguous"):
        VectorQuant(8, 16, cb_norm="l2c")


@PAGE.row('`norm="l2c"`')
def _clipped_inputs() -> None:
    z = 4 * torch.randn(4, 8, 5)
    out = VectorQuant(8, 16, norm="clip")(z)[1]
    torch.testing.assert_close(out.z[:, :, 0].norm(dim=-1), z.norm(dim=1).clamp_max(10))
    with pytest.raises(ValueError, match="'l2c' is ambiguous"):
        VectorQuant(8, 16, norm="l2c")


@PAGE.row('`norm="none"`')
def _no_norm() -> None:
    assert VectorQuant(8, 16, norm="none", cb_norm="none").norm is VectorQuant(8, 16).norm is None


@PAGE.row("`dim=1`")
def _axis() -> None:
    assert VectorQuant(8, 16).dim == 1 and VectorQuant(8, 16)(torch.randn(4, 8))[1].q.shape == (4, 1)


@PAGE.row("`kmeans_init=True`")
def _kmeans() -> None:
    layer = VectorQuant(2, 4, dim=-1, kmeans_init=True)
    blobs = torch.tensor([[9.0, 0.0], [0.0, 9.0], [-9.0, 0.0], [0.0, -9.0]]).repeat(10, 1)
    assert layer(blobs)[1].d.max() < 1e-5  # the first batch already
    few = VectorQuant(8, 16, dim=-1, kmeans_init=True)
    few(torch.randn(3, 8))
    assert len(few.get_codebook().unique(dim=0)) == 16


@PAGE.row("`inplace_optimizer=...`")
def _inner_step() -> None:
    with pytest.raises(ValueError, match="alternating_steps=1, alternating_kind='sgd'"):
        VectorQuant(8, 16, inplace_optimizer=lambda *_: None)  # type: ignore[arg-type]
    layer = VectorQuant(8, 16, alternating_steps=1, alternating_kind="sgd", affine_lr=1.0, sync_nu=0.2, beta=0.5)
    before = layer.get_codebook()
    z_q, out = layer(torch.randn(4, 8, 5))
    (z_q.sum() + out.loss).backward()
    assert not torch.equal(layer.get_codebook(), before)


@PAGE.row("`replace_freq=20`")
def _replacement() -> None:
    torch.manual_seed(0)
    layer = VectorQuant(2, 4, dim=-1, affine_lr=1.0, replace_freq=1)
    nn.init.constant_(layer.codebook.affine_bias, 50)
    for _ in range(2):
        replaced = layer(torch.randn(60, 2))[1].replaced
    assert replaced is not None and replaced.sum() >= 2
    assert layer.get_codebook()[replaced].norm(dim=-1).max() < 5  # not 50 off


@PAGE.row("`affine_groups=4`")
def _affine_groups() -> None:
    assert VectorQuant(8, 16, affine_lr=1.0, affine_groups=4).codebook.affine_scale.shape == (4, 8)
    separate = GroupVectorQuant(8, 16, 2, share=False, affine_lr=1.0, affine_groups=4)
    assert separate.codebook.affine_scale.shape == (2 * 4, 4)


@PAGE.row("`code_vector_size=16`")
def _other_sizes() -> None:
    with pytest.raises(TypeError, match="code_vector_size"):
        VectorQuant(8, 16, code_vector_size=4)  # type: ignore[call-arg]
    layer = ProjectedQuant(VectorQuant(4, 16, dim=-1), nn.Linear(8, 4), nn.Linear(4, 8))
    assert layer(torch.randn(2, 5, 8))[0].shape == (2, 5, 8)


@PAGE.row("`GroupVectorQuant(..., groups=4, share=True)`", "`ResidualVectorQuant(..., groups=4, share=True)`")
def _groups(name: str) -> None:
    layer: Any = getattr(hf_vq, name.strip("`").split("(")[0])(8, 16, groups=4, share=True)
    z_q, out = layer(torch.randn(2, 8, 5))
    assert out.q.shape == (2, 5, 4) and out.loss.ndim == 0
    if isinstance(layer, ResidualVectorQuant):
        torch.testing.assert_close(out.loss, (out.z - out.z_q).square().mean())


@PAGE.row("`z_q, out = layer(z)`", '`out["perplexity"]`')
def _outputs() -> None:
    out = VectorQuant(8, 16)(torch.randn(4, 8, 5))[1]
    assert all(out[name] is getattr(out, name) for name in ("z", "z_q", "d", "q", "loss", "perplexity"))
    assert 1 <= out["perplexity"].item() <= 16


@PAGE.row("`layer.get_codebook()`")
def _codebook() -> None:
    layer = VectorQuant(8, 16)
    layer.get_codebook().zero_()
    assert layer.get_codebook().any()


@PAGE.row("`vqtorch.no_vq(model)`")
def _no_vq() -> None:
    layer = VectorQuant(8, 16)
    z = torch.randn(4, 8, 5)
    with hf_vq.no_vq(nn.Sequential(layer)):
        passed, out = layer(z)
    assert passed is z and out.q is None and out.loss == 0


@PAGE.row("`vqtorch.nn.MaxVecPool2d`")
def _pools() -> None:
    for pool in (MaxVecPool2d(2, padding=0), SoftMaxVecPool2d(2, padding=0)):
        assert pool(torch.randn(2, 8, 6, 6)).shape == (2, 8, 3, 3)


def test_every_row_has_a_case() -> None:
    """Or says why not."""
    PAGE.assert_complete()
    assert len(PAGE.rows) > 15


@pytest.mark.parametrize("name", list(PAGE.cases))
def test_row(name: str) -> None:
    """What a row says of ours holds."""
    PAGE.cases[name]()


@pytest.mark.parametrize("block", PAGE.code())
def test_code(block: str) -> None:
    """Each `print(...)  # text` prints that text."""
    PAGE.assert_prints(block)
