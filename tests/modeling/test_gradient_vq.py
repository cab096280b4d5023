"""Gradient estimators at the ends of the number range. test_quantizer_vq.py checks their formulas."""

import pytest
import torch

from hf_vq import VectorQuant
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
