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


def test_diveq_agrees_with_another_library():
    """The same draw of noise gives the output and the gradients of vector-quantize-pytorch's `directional_reparam`."""
    pytest.importorskip("vector_quantize_pytorch")
    from vector_quantize_pytorch.vector_quantize_pytorch import directional_reparam

    torch.manual_seed(0)
    x, z_q = (torch.randn(20, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    direction = torch.randn(20, 4, dtype=torch.float64)
    found = []
    for estimate in (lambda: pass_gradient(x, z_q, 0.0, "diveq", True), lambda: directional_reparam(x, z_q)):
        torch.manual_seed(1)
        quantized = estimate()
        found.append((quantized.detach(), *torch.autograd.grad((quantized * direction).sum(), (x, z_q))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(found[0][0], z_q)


@pytest.mark.parametrize("estimator", ["diveq", "nsvq"])
def test_noise_keeps_the_distance(estimator):
    """The output is as far from the vector as its code; the gradient is that of the formula; codes get one, too."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 16, gradient_estimator=estimator).train()
    z = torch.randn(50, 4, requires_grad=True)
    quantized, out = layer(z)
    step = quantized - z
    torch.testing.assert_close(step.norm(dim=-1), out.d[:, 0])
    direction = (step / out.d).detach()
    quantized.sum().backward()
    code, error = layer.codebook.weight.detach()[out.q[:, 0]], None
    error = code - z.detach()
    unit = error / error.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(z.grad, 1 - direction.sum(-1, keepdim=True) * unit)
    assert layer.codebook.weight.grad[out.q[:, 0]].abs().sum(1).min() > 0
    towards = (direction * unit).sum(-1)
    assert towards.min() > 0.5 if estimator == "diveq" else towards.min() < 0 < towards.max()


@pytest.mark.parametrize("estimator", ["diveq", "nsvq"])
def test_noise_stays_out_of_evaluation(estimator):
    """In eval the output is the code to the bit, and a vector that is its code has finite gradients in training."""
    torch.manual_seed(0)
    layer = VectorQuant(4, 16, gradient_estimator=estimator).eval()
    z = torch.randn(50, 4)
    z[0] = layer.codebook.weight.detach()[3]
    quantized, out = layer(z)
    assert torch.equal(quantized, layer.lookup(out.q))
    z.requires_grad_()
    quantized, out = layer.train()(z)
    (quantized.sum() + out.loss).backward()
    assert torch.equal(quantized[0], z[0]) and torch.equal(z.grad[0], torch.ones(4))
    assert z.grad.isfinite().all() and layer.codebook.weight.grad.isfinite().all()


def test_noise_and_synchronized_commitment_are_refused():
    """Both would pass the task's gradient to the codes."""
    with pytest.raises(ValueError, match="gradient_estimator 'diveq' needs sync_nu=0, got 0.2"):
        VectorQuant(4, 16, gradient_estimator="diveq", sync_nu=0.2)
