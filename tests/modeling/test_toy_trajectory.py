"""The paper's toy problem, stepped through the real layer.

Task loss |z_q|^2 / 2 in the plane, one vector at (-0.9, -0.9), one code at (0, -0.9); step size 0.55, beta 0.7,
nu 0.3.
"""

import pytest
import torch
from torch import nn

from hf_vq import VectorQuant, no_vq

LR, BETA, NU = 0.55, 0.7, 0.3
Z, C = torch.tensor([[-0.9, -0.9]]), torch.tensor([[0.0, -0.9]])


def trajectory(steps: int, quantize: bool = True, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the vector and of the code after each step of plain gradient descent."""
    layer = VectorQuant(2, 1, beta=BETA, dim=-1, **kwargs)
    with torch.no_grad():
        layer.codebook.weight.copy_(C)
    z = nn.Parameter(Z.clone())
    optimizer = torch.optim.SGD([z, layer.codebook.weight], lr=LR)
    positions = []
    for _ in range(steps):
        optimizer.zero_grad()
        if quantize:
            z_q, out = layer(z)
            # The mean over two features has the gradient d, as in the figure's recursion.
            loss = z_q.square().sum() / 2 + out.loss
        else:
            with no_vq(layer):
                loss = layer(z)[0].square().sum() / 2
        loss.backward()
        optimizer.step()
        positions.append((z.detach().clone()[0], layer.codebook.weight.detach().clone()[0]))
    vectors, codes = zip(*positions, strict=True)
    return torch.stack(vectors), torch.stack(codes)


def test_no_quantization_shrinks_the_vector():
    """Without quantization z <- (1 - lr) z."""
    vectors, _ = trajectory(5, quantize=False)

    torch.testing.assert_close(vectors, Z * (1 - LR) ** torch.arange(1, 6)[:, None])


@pytest.mark.parametrize(
    ("nu", "expected"),
    [
        (0.0, [(-0.347, -0.900), (-0.502, -0.709), (-0.499, -0.433)]),
        (NU, [(-0.347, -0.752), (-0.445, -0.494)]),
    ],
    ids=["joint", "synchronized"],
)
def test_first_positions_are_those_of_the_papers_figure(nu, expected):
    """Joint and synchronized optimization follow the figure's markers within 0.004."""
    _, codes = trajectory(len(expected), sync_nu=nu)

    assert (codes - torch.tensor(expected)).abs().max() < 0.004


@pytest.mark.parametrize("nu", [0.0, NU], ids=["alternating", "alternating and synchronized"])
def test_alternating_follows_its_recursion(nu):
    """Inner step first, then the task step on both from the updated code:

    c' = c + r (z - c); d = z - c'; z <- z - lr (c' + 0.3 d); c <- c' + lr (0.7 d - nu c').
    """
    rate = 0.4
    vectors, codes = trajectory(6, sync_nu=nu, alternating_steps=1, alternating_kind="centroid", alternating_lr=rate)
    z, c = Z[0].clone(), C[0].clone()
    for i in range(6):
        c = c + rate * (z - c)
        d = z - c
        z, c = z - LR * (c + (1 - BETA) * d), c + LR * (BETA * d - nu * c)
        torch.testing.assert_close(vectors[i], z)
        torch.testing.assert_close(codes[i], c)


def test_alternating_and_synchronized_together_come_closest():
    """After ten steps the full method is nearer to the solution (0, 0) than joint optimization."""
    _, joint = trajectory(10)
    _, both = trajectory(10, sync_nu=NU, alternating_steps=1, alternating_lr=0.4)

    assert both[-1].norm() < joint[-1].norm()
