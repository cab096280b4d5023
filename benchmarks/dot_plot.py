"""Figures of tables. Each row of a table becomes a line with one dot for each seed and a stroke at their mean."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image

from hf_vq.plots.style import INK, RUN_COLORS, new_figure, picture


@dataclass
class Panel:
    """One quantity, for every row of a table.

    Args:
        title: What the quantity is.
        values: Row -> one value for each seed. The list is empty if the row lacks the quantity.
        reference: The row whose mean is drawn as a vertical line.
        strong: Rows drawn in the strong color, such as your own methods.
    """

    title: str
    values: dict[str, list[float]]
    reference: str | None = None
    strong: Sequence[str] = ()


def dot_plot(grid: Sequence[Sequence[Panel]], *, panel_width: float = 4.0) -> PIL.Image.Image:
    """Draws panels in a grid. Panels in one line share their rows, and the first panel names them.

    Args:
        grid: Lines of panels. A line may be shorter than the others.
        panel_width: Width of a panel in inches.
    """
    heights = [0.26 * len(line[0].values) + 0.9 for line in grid]
    longest = max(len(row) for line in grid for row in line[0].values)
    columns = max(map(len, grid))
    figure, axes_grid = new_figure(0.075 * longest + panel_width * columns, sum(heights), None, len(grid), columns)
    axes_grid[0, 0].get_gridspec().set_height_ratios(heights)
    for axes_line, line in zip(axes_grid, grid, strict=True):
        rows = list(line[0].values)
        for axes in axes_line[len(line) :]:
            axes.set_visible(False)
        for column, (axes, panel) in enumerate(zip(axes_line, line, strict=False)):
            for place, row in enumerate(rows):
                values = panel.values.get(row)
                if not values:
                    continue
                color = RUN_COLORS[1] if row in panel.strong else "#6b6b6b"
                axes.plot(values, [place] * len(values), "o", color=color, ms=5, alpha=0.6, mew=0)
                axes.plot([statistics.mean(values)], [place], "|", color=color, ms=13, mew=2)
            if panel.reference is not None and panel.values.get(panel.reference):
                axes.axvline(statistics.mean(panel.values[panel.reference]), color=RUN_COLORS[0], lw=1, ls=(0, (3, 2)))
            axes.set_yticks(range(len(rows)), rows if column == 0 else [""] * len(rows))
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_title(panel.title, fontsize=11, color=INK)
    return picture(figure)
