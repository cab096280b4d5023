"""The paper's toy problem: one vector, one code, and where each way of optimizing takes them.

The task loss is `|z_q|^2 / 2` in the plane. The optimizer is plain gradient descent with lr 0.55. The commitment loss
has beta 0.7, and synchronized commitment has nu 0.3. The vector starts at (-0.9, -0.9), the code at (0, -0.9), and the
solution is (0, 0).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn

from hf_vq import VectorQuant, no_vq
from hf_vq.plots.style import FAINT, FRAME, INK, PAPER, RUN_COLORS, legend_below, new_figure, picture, style

LR, BETA, NU = 0.55, 0.7, 0.3
VECTOR, CODE = (-0.9, -0.9), (0.0, -0.9)
# Arguments of `VectorQuant`. The inner step moves a code as far as that of the paper's figure.
_ALTERNATING = {"alternating_steps": 1, "alternating_kind": "centroid", "alternating_lr": LR * BETA}
METHODS: dict[str, dict[str, Any]] = {
    "no quantization": {},
    "joint": {},
    "synchronized": {"sync_nu": NU},
    "alternating": _ALTERNATING,
    "both": {"sync_nu": NU, **_ALTERNATING},
}
_BLUE, _VERMILION = RUN_COLORS[1:3]


def layer_trajectory(method: str, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the vector and of the code, each (steps + 1, 2), as a real `VectorQuant` moves them.

    With "no quantization" the code stays where it is. "Alternating" is what the layer does: it takes the inner step on
    the code, then the task step on both, with gradients at the code's new place.

    Args:
        method: A key of `METHODS`.
        steps: Number of steps of gradient descent.
    """
    layer = VectorQuant(2, 1, beta=BETA, dim=-1, **METHODS[method])
    with torch.no_grad():
        layer.codebook.weight.copy_(torch.tensor([CODE]))
    z = nn.Parameter(torch.tensor([VECTOR]))
    optimizer = torch.optim.SGD([z, layer.codebook.weight], lr=LR)
    vectors, codes = [z.detach().clone()], [layer.codebook.weight.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        if method == "no quantization":
            with no_vq(layer):
                loss = layer(z)[0].square().sum() / 2
        else:
            z_q, out = layer(z)
            # The mean over two features has the gradient d = z_e - z_q, as in the figure's recursion.
            loss = z_q.square().sum() / 2 + out.loss
        loss.backward()
        optimizer.step()
        vectors.append(z.detach().clone())
        codes.append(layer.codebook.weight.detach().clone())
    return torch.cat(vectors), torch.cat(codes)


def figure_trajectory(method: str, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `layer_trajectory`, but with the recursions that the markers of the paper's own figure follow.

    They differ from the layer in the last two methods. The figure's "alternating" steps the vector on the distance
    from before the inner step, and the code only in the inner step. Its "both" applies the old commitment gradient
    twice.

    Args:
        method: A key of `METHODS`.
        steps: Number of steps of the recursion.
    """
    z, q = torch.tensor(VECTOR), torch.tensor(CODE)
    vectors, codes = [z], [q]
    for _ in range(steps):
        d = z - q
        if method == "no quantization":
            z = z - LR * z
        elif method in ("joint", "synchronized"):
            nu = NU if method == "synchronized" else 0.0
            z, q = z - LR * ((1 - BETA) * d + q), q + LR * (BETA * d - nu * q)
        elif method == "alternating":
            q = q + LR * BETA * d
            z = z - LR * ((1 - BETA) * d + q)
        elif method == "both":
            inner = q + LR * BETA * d
            z, q = z - LR * (2 * (1 - BETA) * d + inner), q + LR * (2 * BETA * d - NU * inner)
        else:
            raise ValueError(f"no method {method!r}; there are: {', '.join(METHODS)}")
        vectors.append(z)
        codes.append(q)
    return torch.stack(vectors), torch.stack(codes)


def toy_trajectories(steps: int = 12) -> PIL.Image.Image:
    """Draws the five paths of the layer, the last two paths of the paper's figure, and the codes' distance to (0, 0).

    Args:
        steps: Number of steps of each path.
    """
    figure, grid = new_figure(13, 6.2, rows=2, columns=5)
    for axes, method in zip(grid[0], METHODS, strict=True):
        vectors, codes = layer_trajectory(method, steps)
        _draw_path(axes, vectors.numpy(), None if method == "no quantization" else codes.numpy(), method)
    for axes, method in zip(grid[1, 3:], list(METHODS)[3:], strict=True):
        vectors, codes = figure_trajectory(method, steps)
        _draw_path(axes, vectors.numpy(), codes.numpy(), f"{method}, paper's figure")

    spec = grid[1, 0].get_gridspec()
    for axes in grid[1, :3]:
        axes.remove()
    axes = figure.add_subplot(spec[1, :3])
    style(axes)
    for color, method in zip(RUN_COLORS, METHODS, strict=False):
        vectors, codes = layer_trajectory(method, steps)
        output = vectors if method == "no quantization" else codes  # what the task loss reads
        axes.plot(output.norm(dim=1), color=color, lw=2, marker="o", ms=4, label=method)
    for color, method in zip(RUN_COLORS[3:], list(METHODS)[3:], strict=False):
        axes.plot(
            figure_trajectory(method, steps)[1].norm(dim=1), color=color, lw=1.5, ls=(0, (4, 2)),
            label=f"{method}, paper's figure",
        )  # fmt: skip
    axes.set(yscale="log", xlabel="step", ylabel="distance to the solution", xlim=(0, steps))
    axes.legend(fontsize=9, frameon=False, loc="lower left", labelcolor=INK)
    legend_below(figure, grid[0, 1])
    return picture(figure)


def _draw_path(axes: Any, vectors: np.ndarray, codes: np.ndarray | None, title: str) -> None:
    """Draws one path over the level lines of the task loss."""
    angles = np.linspace(0, 2 * np.pi, 200)
    for radius in np.arange(0.25, 2, 0.25):
        axes.plot(radius * np.cos(angles), radius * np.sin(angles), color=FAINT, lw=0.8, zorder=0)
    if codes is not None:
        for pair in zip(vectors, codes, strict=True):
            axes.plot(*np.array(pair).T, color=FRAME, lw=0.8, ls=(0, (2, 2)), zorder=1)
    axes.plot(*vectors.T, color=_BLUE, lw=1.5, marker="o", ms=4.5, mec=PAPER, mew=0.5, label=r"vector $z_e$")
    if codes is not None:
        axes.plot(*codes.T, color=_VERMILION, lw=1.5, marker="s", ms=4.5, mec=PAPER, mew=0.5, label=r"code $z_q$")
    axes.plot(0, 0, color=INK, marker="*", ms=11, ls="", mec=PAPER, mew=0.6, zorder=5, label="solution")
    axes.set_title(title, fontsize=11, color=INK)
    axes.set(xlim=(-1.05, 0.45), ylim=(-1.05, 0.45), xticks=[-1, -0.5, 0], yticks=[-1, -0.5, 0])
    axes.tick_params(labelsize=8.5)
    axes.grid(False)
    axes.set_aspect("equal")
