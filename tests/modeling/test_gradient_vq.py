"""Gradient estimators at the ends of the number range. test_quantizer_vq.py checks their formulas."""

import pytest
import torch

from hf_vq import VectorQuant
from hf_vq.modeling.codebook_vq import normalize
from hf_vq.modeling.gradient_vq import pass_gradient


def _gradients(layer, z, estimator):
    layer.gradient_estimator = estimator
    z = z.clone().requires_grad_()
    z_q, _ = layer(z)
    torch.manual_seed(1)
    (z_q * torch.randn_like(z_q)).sum().backward()
    return z_q.detach(), z.grad


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 1e-15, 1e-6, 1e19, 3e38])
@pytest.mark.parametrize("cb_norm", [None, "l2", "clip"])
def test_rotation_passes_vectors_without_a_usable_direction_straight_through(cb_norm, value):
    """A vector that is zero, or too short or too long to rotate, gets the straight-through gradient."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 16, cb_norm=cb_norm).eval()
    z = torch.randn(8, 4)
    z[3] = value
    straight, rotated = (_gradients(layer, z, estimator) for estimator in ("ste", "rotation"))

    assert torch.equal(rotated[0], straight[0])
    assert torch.equal(rotated[1][3], straight[1][3])
    assert rotated[1].isfinite().all()
    others = torch.arange(8) != 3
    assert not torch.isclose(rotated[1][others], straight[1][others]).all(1).any()


@pytest.mark.parametrize("code", [0.0, 1e-30, 3e38, torch.inf, torch.nan])
def test_rotation_to_a_code_without_a_usable_direction_is_finite(code):
    """A code of zeros, or one whose norm is no number, gives no NaN to the encoder."""
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    pass_gradient(x, torch.full((2, 2), code), gradient_estimator="rotation").sum().backward()

    assert x.grad.isfinite().all()


@pytest.mark.parametrize("estimator", ["ste", "rotation"])
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-12, 5e-5])
def test_unit_norm_passes_short_vectors_straight_through(length, estimator):
    """Zeros, as padding makes them, get a gradient of the size of the others', in vectors and in codes."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 16, norm="l2", cb_norm="l2", gradient_estimator=estimator, sync_nu=1.0).train()
    z = torch.randn(8, 4)
    z[3] = torch.tensor([length, 0.0, 0.0, 0.0])
    with torch.no_grad():
        layer.codebook.weight[5] = z[3]
    z.requires_grad_()
    z_q, out = layer(z)
    (z_q.sum() + out.loss).backward()

    for gradient in (z.grad, layer.codebook.weight.grad):
        assert gradient.isfinite().all() and gradient.abs().max() < 20


def test_unit_norm_has_the_exact_gradient_elsewhere():
    """Vectors of at least 1e-4 are divided by their norm, forwards and backwards."""
    torch.manual_seed(0)
    z = (torch.randn(8, 4, dtype=torch.float64) * 10.0 ** torch.arange(-3, 5)[:, None]).requires_grad_()
    assert torch.equal(normalize(z, "l2"), torch.nn.functional.normalize(z, dim=-1))
    assert torch.autograd.gradcheck(lambda z: normalize(z, "l2"), z, eps=1e-9)
