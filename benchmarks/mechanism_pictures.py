"""Pictures of a codebook over training: how embeddings P, codes C and codes in use Q move, and what that does.

All functions take a mapping from the name of a run to its snapshots, which `load_snapshots` returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch

from hf_vq.plots.codebook import principal_components, project, scatter_codebook
from hf_vq.plots.style import (
    CODES,
    INK,
    RUN_COLORS,
    USED,
    legend_above,
    legend_below,
    log_ticks,
    new_figure,
    picture,
    run_styles,
)
from hf_vq.training.snapshots import CodebookSnapshot

Runs = Mapping[str, Sequence[CodebookSnapshot]]
Method = Literal["pca", "tsne"]

_DENSITY_POINTS, _RIDGE_HEIGHT = 400, 1.35
_TEXT_LINE = 0.08  # share of a panel's height
# Metric -> the title of its panel, and settings of its axis.
_CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "perplexity": ("perplexity of the codes", {"yscale": "log"}),
    "usage": ("share of the codes in use", {"ylim": (0, 1.02)}),
    "gradient_gap": (r"gradient gap  $|g_q - g|\,/\,|g|$", {"ylim": (0, None)}),
    "mean_distance": ("distance of means P, C / spread of P", {"yscale": "log"}),
    "std_distance": ("distance of deviations P, C / spread of P", {"yscale": "log"}),
    "gradient_cosine": (r"cosine of $g_q$ and $g$", {"ylim": (None, 1.02)}),
}


def projection_panels(
    runs: Runs,
    steps: Sequence[int] | None = None,
    *,
    method: Method = "pca",
    max_points: int = 1500,
    title: str | None = None,
) -> PIL.Image.Image:
    """Draws P, C and Q at some steps of training, with a row for each run and a column for each step.

    All steps of a run share their projection and axes, so what moves in the picture has moved.

    Args:
        runs: Run -> snapshots.
        steps: Steps to draw. The nearest snapshot is taken for each. The default is five from first to last.
        method: "pca" takes the principal components of all snapshots of the run together. "tsne" takes scikit-learn's
            t-SNE of the drawn snapshots, started from these components. It keeps neighborhoods but not distances.
        max_points: The most embeddings to draw in a panel.
        title: A line above the picture.

    Raises:
        ValueError: If a run has no snapshots.
        ModuleNotFoundError: If the method is "tsne" and scikit-learn is missing.
    """
    _check(runs)
    if steps is None:
        first = next(iter(runs.values()))
        steps = [first[round(place)].step for place in np.linspace(0, len(first) - 1, min(5, len(first)))]
    if not len(steps):
        raise ValueError("`steps` is empty: there is no panel to draw")
    figure, grid = new_figure(max(5.2, 2.6 * len(steps) + 0.4), 2.75 * len(runs) + 0.5, title, len(runs), len(steps))
    titles: list[int] = []
    for row, (name, snapshots) in zip(grid, runs.items(), strict=True):
        shown = [min(snapshots, key=lambda snapshot: abs(snapshot.step - step)) for step in steps]
        clouds, shares = _project(snapshots, shown, method, max_points)
        _draw_row(row, shown, clouds, scale=0.45)
        if titles != (titles := [snapshot.step for snapshot in shown]):  # one title for a column of equal steps
            for axes, step in zip(row, titles, strict=True):
                axes.set_title(f"step {step:,}", fontsize=10.5, color=INK)
        row[0].set_ylabel(name, fontsize=12, color=INK)
        variance = "" if shares is None else f"{shares[0]:.0%} and {shares[1]:.0%} of the variance"
        if len(row) == 1:  # its left side has the run's name
            row[0].set_xlabel(variance, fontsize=8.5, color=INK)
        elif variance:
            row[-1].yaxis.set_label_position("right")
            row[-1].set_ylabel(variance, fontsize=8.5, color=INK)
    legend_below(figure, grid[0, 0], markerscale=2)
    return picture(figure)


def projection_animation(
    runs: Runs, *, max_points: int = 1000, max_frames: int = 40, dpi: int = 100
) -> list[PIL.Image.Image]:
    """Draws P, C and Q over training, with one frame for each step that all runs have.

    The runs stand side by side. All frames of a run share their axes.

    Args:
        runs: Run -> snapshots.
        max_points: The most embeddings to draw in a panel.
        max_frames: The most frames. More steps are thinned out evenly, but first and last stay.
        dpi: Pixels per inch. A panel is about 3.4 inches wide.

    Raises:
        ValueError: If a run has no snapshots, or the runs have no step in common.
    """
    _check(runs)
    common = sorted(set.intersection(*({snapshot.step for snapshot in snapshots} for snapshots in runs.values())))
    if not common:
        raise ValueError("the runs have no step in common, so there is no frame to show them together")
    places = np.linspace(0, len(common) - 1, min(len(common), max_frames)).round().astype(int)
    chosen = [common[place] for place in places]
    of_steps = {name: {snapshot.step: snapshot for snapshot in snapshots} for name, snapshots in runs.items()}
    shown = {name: [found[step] for step in chosen] for name, found in of_steps.items()}
    clouds = {name: _project(runs[name], shown[name], "pca", max_points)[0] for name in runs}
    limits = {name: _limits(cloud) for name, cloud in clouds.items()}
    frames = []
    for number, step in enumerate(chosen):
        figure, grid = new_figure(max(5.2, 3.4 * len(runs)), 4.1, columns=len(runs))
        figure.set_dpi(dpi)
        for axes, name in zip(grid[0], runs, strict=True):
            _draw_row([axes], [shown[name][number]], [clouds[name][number]], scale=0.5, limits=limits[name])
            axes.set_title(name, fontsize=11, color=INK)
        figure.suptitle(f"step {step:,}", fontsize=12, color=INK)
        legend_below(figure, grid[0, 0], markerscale=2)
        frames.append(picture(figure))
    return frames


def save_animation(frames: Sequence[PIL.Image.Image], path: str | Path, *, milliseconds: int = 200) -> None:
    """Writes frames as an endless GIF with one common palette. The last frame stays five times as long.

    Raises:
        ValueError: If there are no frames.
    """
    if not frames:
        raise ValueError("there is no frame to write")
    palette = frames[-1].quantize(64)
    images = [frame.quantize(palette=palette, dither=PIL.Image.Dither.NONE) for frame in frames]
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[milliseconds] * (len(images) - 1) + [5 * milliseconds],
        loop=0,
        optimize=True,
    )


def density_ridges(runs: Runs, *, max_ridges: int = 12, title: str | None = None) -> PIL.Image.Image:
    """Draws the densities of P and C along the first principal component of a run, with one ridge for each step.

    Time goes down. Each density is scaled to the same height. Ticks under a ridge are the codes in use, Q.

    Args:
        runs: Run -> snapshots.
        max_ridges: The most ridges. More steps are thinned out evenly, but first and last stay.
        title: A line above the picture.

    Raises:
        ValueError: If a run has no snapshots.
    """
    _check(runs)
    figure, grid = new_figure(max(5.2, 4.2 * len(runs)), 6, title, columns=len(runs))
    for axes, (name, snapshots) in zip(grid[0], runs.items(), strict=True):
        places = np.linspace(0, len(snapshots) - 1, min(len(snapshots), max_ridges)).round().astype(int)
        shown = [snapshots[place] for place in places]
        clouds, shares = _project(snapshots, shown, "pca", max_points=None)
        assert shares is not None
        (low, high), _ = _limits(clouds)
        grid_x = np.linspace(low, high, _DENSITY_POINTS)
        for line, (snapshot, (p, c)) in enumerate(zip(shown, clouds, strict=True)):
            front = 3 * line + 2  # later steps are in front; within a step Q is before P and P before C
            for points, color, zorder in ((p, RUN_COLORS[1], front - 1), (c, CODES, front - 2)):
                density = _density(points[:, 0], grid_x)
                height = _RIDGE_HEIGHT * density / density.max() - line
                axes.fill_between(grid_x, -line, height, color=color, alpha=0.3, lw=0, zorder=zorder)
                axes.plot(grid_x, height, color=color, lw=1.1, zorder=zorder)
            axes.vlines(c[snapshot.used.numpy(), 0], -line - 0.17, -line - 0.03, color=USED, lw=0.8, zorder=front)
        for color, label in ((RUN_COLORS[1], "P: embeddings"), (CODES, "C: all codes"), (USED, "Q: codes in use")):
            axes.plot([], [], color=color, lw=5, label=label)
        axes.set_yticks([-line for line in range(len(shown))], [f"{snapshot.step:,}" for snapshot in shown])
        axes.set(xlim=(low, high), xticks=[], xlabel=f"first component ({shares[0]:.0%} of the variance)")
        axes.set_title(name, fontsize=12, color=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(False)
    grid[0, 0].set_ylabel("training step")
    legend_below(figure, grid[0, 0])
    return picture(figure)


def codebook_curves(runs: Runs, *, title: str | None = None) -> PIL.Image.Image:
    """Draws use of the codes, distances of the moments of P and C, and the straight-through gap over training.

    The metrics are those of `CodebookMonitor`. Distances are in units of P's spread.

    Args:
        runs: Run -> snapshots. The first run is gray and dashed.
        title: A line above the picture.

    Raises:
        ValueError: If a run has no snapshots.
    """
    _check(runs)
    figure, grid = new_figure(12, 6.2, title, rows=2, columns=3)
    for axes, (metric, (label, axis)) in zip(grid.flat, _CURVES.items(), strict=True):
        for style, (name, snapshots) in zip(run_styles(len(runs)), runs.items(), strict=True):
            points = [(snapshot.step, snapshot.metrics[metric]) for snapshot in snapshots]
            axes.plot(*np.array(points).T, label=name, marker="o" if len(points) < 15 else None, ms=4, **style)
        axes.set(**axis)
        log_ticks(axes)
        axes.set_title(label, fontsize=11, color=INK)
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    legend_above(figure, grid[0, 0], columns=len(runs))
    return picture(figure)


def _check(runs: Runs) -> None:
    empty = [name for name, snapshots in runs.items() if not snapshots]
    if empty or not runs:
        raise ValueError(f"no snapshots{f' of {empty[0]!r}' if empty else ''}: see load_snapshots")
    for name, snapshots in runs.items():
        for snapshot in snapshots:
            if not (snapshot.embeddings.isfinite().all() and snapshot.codes.isfinite().all()):
                raise ValueError(
                    f"the run {name!r} has embeddings or codes at step {snapshot.step:,} that are not finite: it "
                    "diverged, give its snapshots up to there"
                )


def _thin(vectors: torch.Tensor, limit: int | None) -> torch.Tensor:
    if limit is None:
        return vectors
    return vectors[torch.linspace(0, len(vectors) - 1, min(len(vectors), limit)).round().long()]


def _project(
    snapshots: Sequence[CodebookSnapshot], shown: Sequence[CodebookSnapshot], method: Method, max_points: int | None
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray | None]:
    """Projects P and C of the snapshots in `shown` to one plane.

    `max_points` thins out P alone. All codes stay, because Q is a mask of them.

    Returns:
        The projected P and C of each snapshot, and the share of the variance of each axis (None for t-SNE).
    """
    center, components, shares = principal_components([x for s in snapshots for x in (s.embeddings, s.codes)])
    sets = [(_thin(snapshot.embeddings, max_points), snapshot.codes) for snapshot in shown]
    flat = [(project(p, center, components), project(c, center, components)) for p, c in sets]
    if method == "pca":
        return flat, shares
    if method != "tsne":
        raise ValueError(f"method must be 'pca' or 'tsne', got {method!r}")
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "method='tsne' needs scikit-learn. Install it with: pip install scikit-learn", name=error.name
        ) from error
    vectors = torch.cat([x for pair in sets for x in pair]).numpy()
    start = np.concatenate([x for pair in flat for x in pair])
    start = start / max(start[:, 0].std(), 1e-12) * 1e-4  # scikit-learn's own scale for a start
    tsne = TSNE(perplexity=min(30.0, (len(vectors) - 1) / 3), init=start.astype(np.float32), random_state=0)
    points = iter(np.split(tsne.fit_transform(vectors), np.cumsum([len(x) for pair in sets for x in pair])[:-1]))
    return [(next(points), next(points)) for _ in sets], None


def _limits(clouds: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ranges of x and y that hold all points of all steps, with a margin."""
    points = np.concatenate([x for pair in clouds for x in pair])
    low, high = points.min(0), points.max(0)
    margin = 0.04 * np.maximum(high - low, 1e-6)
    (left, bottom), (right, top) = low - margin, high + margin
    return (float(left), float(right)), (float(bottom), float(top))


def _draw_row(
    row: Iterable[Any],
    shown: Sequence[CodebookSnapshot],
    clouds: Sequence[tuple[np.ndarray, np.ndarray]],
    scale: float,
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> None:
    """Draws snapshots of one run on common axes, each with its number of codes in use."""
    (left, right), (bottom, top) = limits or _limits(clouds)
    # A square that holds all points, above a line of text. So panels have one size and equal units on both axes.
    half = max(right - left, (top - bottom) / (1 - _TEXT_LINE)) / 2
    center = (bottom + top) / 2 - _TEXT_LINE * half
    for axes, snapshot, (p, c) in zip(row, shown, clouds, strict=True):
        scatter_codebook(axes, p, c, snapshot.used.numpy(), scale)
        axes.set(
            xlim=((left + right) / 2 - half, (left + right) / 2 + half),
            ylim=(center - half, center + half),
        )
        axes.set_aspect("equal", adjustable="box")
        axes.text(
            0.03, 0.03, f"{snapshot.active_codes:,} of {len(snapshot.uses):,} codes in use",
            transform=axes.transAxes, fontsize=8.5, color=INK,
        )  # fmt: skip


def _density(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Gaussian kernel density from a histogram, with Scott's bandwidth but at least a hundredth of the range."""
    edges = np.concatenate([at - (at[1] - at[0]) / 2, [at[-1] + (at[1] - at[0]) / 2]])
    counts = np.histogram(values, edges)[0].astype(float)
    width = max(values.std() * len(values) ** -0.2, (at[-1] - at[0]) / 100)
    kernel = np.exp(-0.5 * ((at[:, None] - at[None]) / width) ** 2)
    return kernel @ counts / max(counts.sum(), 1) / (width * np.sqrt(2 * np.pi))
