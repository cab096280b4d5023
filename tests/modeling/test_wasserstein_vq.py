"""The distance between vectors and codes as normal distributions, and what it does in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_vq import GroupVectorQuant, ResidualVectorQuant, VectorQuant
from hf_vq.modeling.wasserstein_vq import gaussian_wasserstein, moments_over_ranks


def square_root(matrix: torch.Tensor) -> torch.Tensor:
    values, directions = torch.linalg.eig(matrix)
    return (directions @ torch.diag(values.sqrt()) @ torch.linalg.inv(directions)).real


def test_the_closed_form() -> None:
    """Means, and covariances that do not commute; zero for the same moments; the gradient is that of differences."""
    torch.manual_seed(0)
    vectors = torch.randn(100, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 1
    codes = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    mean, covariance = moments_over_ranks(vectors)
    torch.testing.assert_close(covariance, torch.cov(vectors.T, correction=0))
    other = torch.cov(codes.T, correction=0)
    cross = square_root(covariance @ other)
    expected = (mean - codes.mean(0)).square().sum() + (covariance + other - 2 * cross).trace()
    torch.testing.assert_close(gaussian_wasserstein(mean, covariance, codes), expected)
    assert gaussian_wasserstein(mean, covariance, vectors) < 1e-6
    assert torch.autograd.gradcheck(lambda codes: gaussian_wasserstein(mean, covariance, codes), codes)


@pytest.mark.parametrize(
    "codes", [torch.zeros(8, 3), torch.ones(8, 3), torch.eye(3)[:1].repeat(8, 1), torch.randn(2, 3)], ids=range(4)
)
def test_codes_without_a_spread_have_finite_gradients(codes: torch.Tensor) -> None:
    """Also where they lie in a plane."""
    codes = codes.clone().requires_grad_()
    for vectors in (torch.randn(50, 3), torch.ones(50, 3)):
        (gradient,) = torch.autograd.grad(gaussian_wasserstein(*moments_over_ranks(vectors), codes), codes)
        assert gradient.isfinite().all()


LAYERS: dict[str, Any] = {
    "plain": lambda **kwargs: VectorQuant(4, 64, **kwargs),
    "groups": lambda **kwargs: GroupVectorQuant(4, 64, 2, False, **kwargs),
    "residual": lambda **kwargs: ResidualVectorQuant(4, 64, 2, False, **kwargs),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_it_brings_unused_codes_to_the_vectors(kind: str) -> None:
    """Far from the vectors one code takes all of them; with the distance the codes follow and share them."""
    usage = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        layer = LAYERS[kind](wasserstein_weight=weight, replace_freq=0).train()
        optimizer = torch.optim.Adam(layer.parameters(), 0.05)
        for _ in range(200):
            _, out = layer(torch.randn(2, 4, 16, 16) * 0.3 + 3)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
        usage.append(out.usage.item())
    assert usage[1] > 0.8 and usage[1] > 1.5 * usage[0]


def test_it_is_part_of_the_training_loss_alone() -> None:
    """The loss in eval, and of a frozen layer, is commitment; no gradient reaches the vectors."""
    torch.manual_seed(0)
    layer, z = VectorQuant(4, 16, wasserstein_weight=0.5), torch.randn(2, 4, 5, 5, requires_grad=True)
    plain = VectorQuant(4, 16)
    plain.load_state_dict(layer.state_dict())
    x = z.detach().moveaxis(1, -1).flatten(0, -2)
    distance = gaussian_wasserstein(*moments_over_ranks(x), layer.codebook.weight)
    trained, expected = layer.train()(z)[1].loss, plain.train()(z)[1].loss
    torch.testing.assert_close(trained, expected + 0.5 * distance)
    assert torch.equal(*(torch.autograd.grad(loss, z)[0] for loss in (trained, expected)))
    torch.testing.assert_close(layer.eval()(z)[1].loss, plain.eval()(z)[1].loss)
    layer.freeze().train()
    torch.testing.assert_close(layer(z)[1].loss, plain.eval()(z)[1].loss)


def test_codes_that_take_no_gradient_refuse_it() -> None:
    """Moving averages move them."""
    with pytest.raises(ValueError, match='codebook_update="ema" needs wasserstein_weight=0, got 1.0'):
        VectorQuant(4, 16, codebook_update="ema", wasserstein_weight=1.0)
