"""Pictures of a codebook: how its codes are used, where embeddings and codes lie, and curves over training.

Every function that draws a whole picture returns a `PIL.Image`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch

from hf_vq.metrics.base import perplexity
from hf_vq.plots.style import (
    CODES,
    EMBEDDINGS,
    INK,
    PAPER,
    USED,
    as_map,
    fitting,
    legend_above,
    legend_below,
    new_figure,
    picture,
    run_styles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = torch.Tensor | Mapping[str, torch.Tensor]


def usage_histogram(counts: Values, *, title: str | None = None) -> PIL.Image.Image:
    """Draws how often each code was used, on a logarithmic scale, with the codes sorted by use.

    Args:
        counts: Uses of each code (num_codes,). To compare several runs, a mapping from run to counts.
        title: A line above the picture.
    """
    runs = _runs(counts)
    figure, ((axes,),) = new_figure(8, 3.6, title)
    for style, (name, values) in zip(run_styles(len(runs)), runs.items(), strict=True):
        color = style["color"]
        ranked = np.sort(values.detach().cpu().double().numpy())[::-1]
        active = int((ranked > 0).sum())
        facts = f"{active:,} of {len(ranked):,} codes in use, perplexity {perplexity(values.detach().cpu()):,.0f}"
        axes.fill_between(np.arange(1, active + 1), ranked[:active], 0.5, step="mid", color=color, alpha=0.25, lw=0)
        axes.step(np.arange(1, active + 1), ranked[:active], where="mid",
                  label=f"{name}: {facts}" if name else facts, **style)  # fmt: skip
        if active < len(ranked):  # the curve falls to zero here, which a logarithmic axis cannot show
            axes.vlines(active + 0.5, 0.5, ranked[max(active - 1, 0)], **style)
    axes.set(yscale="log", ylim=(0.5, None), xlabel="codes, sorted by use", ylabel="uses")
    axes.yaxis.set_major_formatter("{x:,.6g}")  # the logarithmic scale has replaced the formatter
    axes.set_xlim(0, max(len(values) for values in runs.values()) + 1)
    legend_above(figure, axes, columns=1)
    return picture(figure)


def usage_curves(
    curves: Mapping[str, Iterable[tuple[float, float]]],
    *,
    ylabel: str = "perplexity",
    xlabel: str = "training step",
    maximum: float | None = None,
    title: str | None = None,
) -> PIL.Image.Image:
    """Draws a quantity over training, one line for each run.

    Args:
        curves: Mapping from run to (step, value) pairs.
        ylabel: What the values are.
        xlabel: What the steps are.
        maximum: Draws a dashed line at the largest possible value, such as the number of codes.
        title: A line above the picture.

    Raises:
        ValueError: If a run has no points.
    """
    figure, ((axes,),) = new_figure(8, 3.6, title)
    if maximum is not None:
        axes.axhline(maximum, color=INK, lw=1, ls=(0, (4, 4)), alpha=0.5)
        axes.annotate(f"{maximum:,.6g}", (1, maximum), (4, 0), ("axes fraction", "data"), "offset points",
                      va="center", color=INK, alpha=0.7)  # fmt: skip
    for style, (name, curve) in zip(run_styles(len(curves)), curves.items(), strict=True):
        points = np.array(list(curve), dtype=float).reshape(-1, 2)
        if len(points) == 0:
            raise ValueError(f"The curve of '{name}' has no points. Pass at least one (step, {ylabel}) pair.")
        axes.plot(*points.T, label=name, marker="o" if len(points) < 15 else None, ms=4, **style)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    legend_above(figure, axes, columns=3)
    return picture(figure)


def projection(
    embeddings: Values, codes: Values, used: Values, *, max_points: int = 3000, title: str | None = None
) -> PIL.Image.Image:
    """Draws embeddings P, all codes C and the codes in use Q in a plane.

    The plane is that of the first two principal components of P and C together.

    Args:
        embeddings: Vectors before quantization (num_vectors, dim). For one panel each, a mapping from run to vectors.
        codes: The effective codebook (num_codes, dim), or one for each run.
        used: Which codes are in use, as bool or counts (num_codes,), or one for each run.
        max_points: The most embeddings to show. They are taken at equal distances.
        title: A line above the picture.

    Raises:
        ValueError: If the arguments name different runs.
    """
    runs = [_runs(values) for values in (embeddings, codes, used)]
    if not runs[0].keys() == runs[1].keys() == runs[2].keys():
        raise ValueError(
            "`embeddings`, `codes` and `used` must name the same runs, got different runs: "
            f"{', '.join(str(sorted(run)) for run in runs)}."
        )
    count = len(runs[0])
    figure, grid = new_figure(max(5.2, 4 * count), 4.6, title, columns=count)
    for axes, name in zip(grid.flat, runs[0], strict=True):
        p, c, mask = runs[0][name], runs[1][name], runs[2][name]
        p = p[torch.linspace(0, len(p) - 1, min(len(p), max_points)).round().long()]
        center, components, shares = principal_components([p, c])
        is_used = mask.detach().cpu().bool().numpy()
        scatter_codebook(axes, project(p, center, components), project(c, center, components), is_used)
        facts = f"{int(is_used.sum()):,} of {len(is_used):,} codes in use"
        title = fitting(f"{name}\n{facts}" if name else facts, figure.get_figwidth() / count - 0.5, 11)
        axes.set_title(title, fontsize=11, color=INK)
        axes.set_xlabel(f"{shares[0]:.0%} of the variance", fontsize=9)
        axes.set_ylabel(f"{shares[1]:.0%}", fontsize=9)
        axes.margins(0.05)
    legend_below(figure, grid.flat[0], markerscale=1.8)
    return picture(figure)


def scatter_codebook(
    axes: Axes, embeddings: np.ndarray, codes: np.ndarray, used: np.ndarray, scale: float = 1.0
) -> None:
    """Draws P, C and Q, flat vectors (N, 2), into a map. `used` is the mask of C that makes Q."""
    size = float(np.clip(9000 / max(used.sum(), 1), 9, 36))  # few codes must be visible, many must not hide the rest
    (px, py), (cx, cy), (qx, qy) = embeddings.T, codes.T, codes[used].T
    # C lies lowest, because embeddings that have not spread yet would vanish under it.
    axes.scatter(px, py, s=9 * scale, color=EMBEDDINGS, lw=0, alpha=0.6, zorder=2, label="P: embeddings")
    axes.scatter(cx, cy, s=12 * scale, color=CODES, lw=0.7, marker="x", alpha=0.6, zorder=1, label="C: all codes")
    axes.scatter(qx, qy, s=size * scale, color=USED, lw=0.3, edgecolor=PAPER, zorder=3, label="Q: codes in use")
    as_map(axes)


def principal_components(clouds: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Finds the center and the first two principal components of several clouds of vectors together.

    Each cloud weighs the same, however many points it has. Otherwise a large codebook would hide where the embeddings
    spread.

    Args:
        clouds: Clouds of vectors, each (num_points, dim).

    Returns:
        The center (dim,), the components (2, dim), both float64, and each component's share of the variance.
    """
    doubles = [cloud.detach().cpu().double() for cloud in clouds]
    center = torch.stack([cloud.mean(0) for cloud in doubles]).mean(0)
    scatter = torch.stack([(cloud - center).T @ (cloud - center) / len(cloud) for cloud in doubles]).sum(0)
    values, vectors = torch.linalg.eigh(scatter)
    values, components = values.flip(0).clamp(min=0), vectors.T.flip(0)
    if len(components) < 2:
        components = torch.nn.functional.pad(components, (0, 0, 0, 1))
        values = torch.nn.functional.pad(values, (0, 1))
    components = components[:2]
    # Eigenvectors can have either sign. Without a rule the picture could flip between runs.
    components = components * components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
    return center, components, (values / values.sum().clamp(min=1e-30))[:2].numpy()


def project(vectors: torch.Tensor, center: torch.Tensor, components: torch.Tensor) -> np.ndarray:
    """Projects vectors (N, dim) to the plane of `principal_components`, (N, 2)."""
    return ((vectors.detach().cpu().double() - center) @ components.T).numpy()


def _runs(values: Values) -> dict[str, torch.Tensor]:
    return {"": values} if isinstance(values, torch.Tensor) else dict(values)
