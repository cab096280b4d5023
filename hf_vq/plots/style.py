"""The look that all drawn figures share: colours, axes, legends, and how a figure becomes a picture.

matplotlib is imported on first use and draws off screen, whatever backend is set.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct for the colour-blind too. The first is for what is compared against.
RUN_COLORS = ("#7f7f7f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
EMBEDDINGS, CODES, USED = "#56b4e9", "#525252", "#d62728"
INK, PAPER, FAINT, FRAME = "#262626", "#ffffff", "#e5e5e5", "#b0b0b0"


def run_colors(count: int) -> Sequence[str]:
    """Colours of runs; a single one gets the strong colour and not the grey of a baseline."""
    return RUN_COLORS[1:2] if count == 1 else [RUN_COLORS[index % len(RUN_COLORS)] for index in range(count)]


def run_styles(count: int) -> list[dict[str, object]]:
    """How lines of runs are drawn: a baseline dashed and above the others, which may cover it; colours come again with
    other dashes."""
    styles: list[dict[str, object]] = [
        {"color": color, "lw": 1.8, "ls": ("-", ":", "-.")[index // len(RUN_COLORS) % 3]}
        for index, color in enumerate(run_colors(count))
    ]
    if count > 1:
        styles[0] |= {"ls": (0, (3, 2)), "zorder": 5}
    return styles


def new_figure(
    width: float, height: float, title: str | None = None, rows: int = 1, columns: int = 1
) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches and its axes, an array (rows, columns)."""
    # Not pyplot: it keeps figures alive and depends on the user's backend.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), dpi=130, layout=ConstrainedLayoutEngine(h_pad=0.08), facecolor=PAPER)
    if title:
        figure.suptitle(title, fontsize=13, color=INK)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        style(axes)
    return figure, grid


def style(axes: Axes) -> None:
    """Quiet axes: no box, a faint grid, thousands with commas."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(FRAME)
    axes.tick_params(which="both", colors=INK, labelsize=10, length=0)
    axes.xaxis.set_major_formatter("{x:,.6g}")
    axes.yaxis.set_major_formatter("{x:,.6g}")
    axes.grid(color=FAINT, lw=0.8)
    axes.set_axisbelow(True)


def log_ticks(axes: Axes) -> None:
    """Plain numbers on a logarithmic axis; those between powers of ten only where less than a decade is seen."""
    from matplotlib.ticker import NullFormatter

    axes.yaxis.set_major_formatter("{x:,.6g}")  # a logarithmic scale brings its own
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter("{x:,.2g}" if axes.get_yscale() == "log" and high < 10 * low else NullFormatter())


def as_map(axes: Axes) -> None:
    """Axes of a projection: a box without ticks, in which distances are distances."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_aspect("equal", adjustable="datalim")


def legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    """A legend of one of the axes over the whole figure, if anything is in it; in fewer columns if it is wide."""
    handles, labels = axes.get_legend_handles_labels()
    if any(labels):
        inches = 0.7 + 0.08 * max(map(len, labels))
        columns = max(1, min(columns, int(figure.get_figwidth() / inches)))
        figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=10.5, labelcolor=INK
        )
        rows = -(-len(labels) // columns)
        figure.set_figheight(figure.get_figheight() + 0.2 * max(0, rows - 2))  # it shall not take the axes' place


def legend_below(figure: Figure, axes: Axes, markerscale: float = 1.0) -> None:
    """A legend of one of the axes in one line under the figure, its colours without transparency."""
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, markerscale=markerscale,
        labelcolor=INK,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)


def picture(figure: Figure) -> PIL.Image.Image:
    """The drawn figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return PIL.Image.open(buffer).convert("RGB")
