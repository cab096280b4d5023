"""The look that all figures share: colors, axes, legends, and how a figure becomes a picture.

matplotlib is imported on first use. It draws off screen, whatever backend is set.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from hf_vq.plots.labels import SIZE, families, printable, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which color-blind people can tell apart, too. The first color is for the baseline.
RUN_COLORS = ("#7f7f7f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
EMBEDDINGS, CODES, USED = "#56b4e9", "#525252", "#d62728"
INK, PAPER, FAINT, FRAME = "#262626", "#ffffff", "#e5e5e5", "#b0b0b0"


def run_colors(count: int) -> Sequence[str]:
    """Returns the colors of runs. A single run gets the strong color, not the gray of a baseline."""
    return RUN_COLORS[1:2] if count == 1 else [RUN_COLORS[index % len(RUN_COLORS)] for index in range(count)]


def run_styles(count: int) -> list[dict[str, object]]:
    """Returns how to draw the lines of runs.

    The baseline is dashed and lies above the others, which may cover it. When colors repeat, the dashes differ.
    """
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
    """Makes a figure of `width` x `height` inches. Returns it with its axes, an array (rows, columns)."""
    # Not pyplot, which keeps figures alive and depends on the user's backend.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), dpi=130, layout=ConstrainedLayoutEngine(h_pad=0.08), facecolor=PAPER)
    if title:
        figure.suptitle(fitting(title, width, 13), fontsize=13, color=INK)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        style(axes)
    return figure, grid


def style(axes: Axes) -> None:
    """Makes axes quiet: no box, a faint grid, thousands with commas."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(FRAME)
    axes.tick_params(which="both", colors=INK, labelsize=10, length=0)
    axes.xaxis.set_major_formatter("{x:,.6g}")
    axes.yaxis.set_major_formatter("{x:,.6g}")
    axes.grid(color=FAINT, lw=0.8)
    axes.set_axisbelow(True)


def log_ticks(axes: Axes) -> None:
    """Puts plain numbers on a logarithmic axis. It labels numbers between powers of ten only below a decade."""
    from matplotlib.ticker import NullFormatter

    axes.yaxis.set_major_formatter("{x:,.6g}")  # a logarithmic scale replaces the formatter
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter("{x:,.2g}" if axes.get_yscale() == "log" and high < 10 * low else NullFormatter())


def as_map(axes: Axes) -> None:
    """Makes axes of a projection: a box without ticks, with equal scales in both directions."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_aspect("equal", adjustable="datalim")


def legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    """Puts a legend of one of the axes above the whole figure, if it has entries. A wide one gets fewer columns."""
    handles, labels = axes.get_legend_handles_labels()
    if any(labels):
        labels = [fitting(label, figure.get_figwidth() - 1, 10.5) for label in labels]
        inches = 0.7 + 0.08 * max(len(line) for label in labels for line in label.splitlines())
        columns = max(1, min(columns, int(figure.get_figwidth() / inches)))
        # A title of the figure would lie on the legend.
        title = figure.get_suptitle()
        figure.suptitle("")
        legend = figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=10.5, labelcolor=INK,
            title=title or None, title_fontsize=13, alignment="left",
        )  # fmt: skip
        legend.get_title().set_color(INK)
        rows = -(-sum(label.count("\n") + 1 for label in labels) // columns)
        figure.set_figheight(figure.get_figheight() + 0.2 * max(0, rows - 2))  # keeps the size of the axes


def legend_below(figure: Figure, axes: Axes, markerscale: float = 1.0) -> None:
    """Puts a legend of one of the axes below the figure, in one line, with its colors opaque."""
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, markerscale=markerscale,
        labelcolor=INK,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)


def fitting(text: str, inches: float, points: float) -> str:
    """A text with line breaks, so that it is no wider than this in a font of this size, and of printable letters."""
    width = inches * 72 / points * SIZE
    return "\n".join(line for part in text.splitlines() for line in wrapped(printable([part])[0], width))


def picture(figure: Figure) -> PIL.Image.Image:
    """Renders the figure as a picture, with a font for each of its letters."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if not text.get_text().isascii():  # type: ignore[attr-defined]
            text.set_fontfamily(["DejaVu Sans", *families(text.get_text())])  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return PIL.Image.open(buffer).convert("RGB")
