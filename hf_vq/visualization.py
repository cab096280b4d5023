"""Pictures of a tokenizer: reconstructions, how its codes are used, and where embeddings and codes lie; samples.

Every function returns a `PIL.Image`. Runs keep their colour from picture to picture as long as they keep their place.
matplotlib is imported on first use and draws off screen, whatever backend is set.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from .metrics import perplexity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct for the colour-blind too. The first is for what is compared against.
RUN_COLORS = ("#7f7f7f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
EMBEDDINGS, CODES, USED = "#9ecae1", "#525252", "#d62728"
INK, PAPER, FAINT = "#262626", "#ffffff", "#e5e5e5"

Values = torch.Tensor | Mapping[str, torch.Tensor]


def reconstruction_grid(
    originals: torch.Tensor,
    reconstructions: Mapping[str, torch.Tensor],
    *,
    max_images: int = 10,
    width: int = 1100,
) -> PIL.Image.Image:
    """Images above their reconstructions, one labelled row for each.

    Args:
        originals: Images (batch, 1 or 3, height, width) in [-1, 1].
        reconstructions: Row label -> reconstructions of the same shape.
        max_images: Columns; further images are left out.
        width: Width of the picture in pixels, about; small images are enlarged by whole factors, without smoothing.

    Raises:
        ValueError: A reconstruction has another shape than the originals, or there is no image.
    """
    for name, values in reconstructions.items():
        if values.shape != originals.shape:
            raise ValueError(f"{name!r} has shape {tuple(values.shape)}, the originals {tuple(originals.shape)}")
    if originals.ndim != 4 or originals.shape[0] == 0:
        raise ValueError(f"expected images (batch, channels, height, width), got shape {tuple(originals.shape)}")
    font = _font(17)
    rows = {"original": originals, **reconstructions}
    columns = min(max_images, originals.shape[0])
    gap, margin = 6, 14
    label_width = max(int(font.getlength(name)) for name in rows) + 2 * margin
    height, side = originals.shape[-2:]
    room = (width - label_width - margin) // columns - gap
    scale = round(room / side)
    cell_height, cell_width = (height * scale, side * scale) if scale else (height * room // side, room)

    canvas_width = label_width + columns * (cell_width + gap) - gap + margin
    canvas = PIL.Image.new("RGB", (canvas_width, len(rows) * (cell_height + gap) - gap + 2 * margin), PAPER)
    draw = PIL.ImageDraw.Draw(canvas)
    for row, (name, values) in enumerate(rows.items()):
        top = margin + row * (cell_height + gap)
        draw.text((label_width - margin, top + cell_height // 2), name, fill=INK, font=font, anchor="rm")
        for column in range(columns):
            filter_ = PIL.Image.Resampling.NEAREST if scale else PIL.Image.Resampling.LANCZOS
            image = _to_pil(values[column]).resize((cell_width, cell_height), filter_)
            canvas.paste(image, (label_width + column * (cell_width + gap), top))
    return canvas


def sample_sheet(
    images: Sequence[PIL.Image.Image],
    *,
    row_labels: Sequence[str] | None = None,
    columns: int = 8,
    width: int = 1100,
) -> PIL.Image.Image:
    """Generated images in rows, each with its label.

    Args:
        images: Of one size, row after row.
        row_labels: One for each row, such as the names of the classes; long ones are cut off.
        columns: Images of a row.
        width: Width of the picture in pixels, about; small images are enlarged by whole factors, without smoothing.

    Raises:
        ValueError: There is no image, or the number of labels is not that of the rows.
    """
    rows = -(-len(images) // columns)
    if not images or (row_labels is not None and len(row_labels) != rows):
        raise ValueError(f"expected images, and a label for each row of {columns}, got {len(images)}, {row_labels}")
    font = _font(17)
    gap, margin = 6, 14
    labels = [_shortened(label) for label in row_labels or []]
    label_width = 2 * margin + max(int(font.getlength(label)) for label in labels) if labels else margin
    room = (width - label_width - margin) // columns - gap
    size = images[0].size
    scale = room // size[0] or room / size[0]
    cell_width, cell_height = (max(1, round(side * scale)) for side in size)
    filter_ = PIL.Image.Resampling.NEAREST if scale >= 1 else PIL.Image.Resampling.LANCZOS

    canvas_size = (
        label_width + min(columns, len(images)) * (cell_width + gap) - gap + margin,
        rows * (cell_height + gap) - gap + 2 * margin,
    )
    canvas = PIL.Image.new("RGB", canvas_size, PAPER)
    draw = PIL.ImageDraw.Draw(canvas)
    for row, label in enumerate(labels):
        middle = margin + row * (cell_height + gap) + cell_height // 2
        draw.text((label_width - margin, middle), label, fill=INK, font=font, anchor="rm")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        cell = image.convert("RGB").resize((cell_width, cell_height), filter_)
        canvas.paste(cell, (label_width + column * (cell_width + gap), margin + row * (cell_height + gap)))
    return canvas


def usage_histogram(counts: Values, *, title: str | None = None) -> PIL.Image.Image:
    """How often each code was used, codes sorted by that, on a logarithmic scale.

    Args:
        counts: Uses of each code (num_codes,); or run -> counts, to compare several.
        title: A line above the picture.
    """
    runs = _runs(counts)
    figure, axes = _figure(8, 3.6, title)
    for color, (name, values) in zip(_colors(len(runs)), runs.items(), strict=True):
        ranked = np.sort(values.detach().cpu().double().numpy())[::-1]
        active = int((ranked > 0).sum())
        facts = f"{active:,} of {len(ranked):,} codes in use, perplexity {perplexity(values.detach().cpu()):,.0f}"
        axes.fill_between(np.arange(1, active + 1), ranked[:active], 0.5, step="mid", color=color, alpha=0.25, lw=0)
        axes.step(np.arange(1, active + 1), ranked[:active], where="mid", color=color, lw=1.8,
                  label=f"{name}: {facts}" if name else facts)  # fmt: skip
        if active < len(ranked):  # where the curve falls to zero, which a logarithmic axis cannot show
            axes.vlines(active + 0.5, 0.5, ranked[max(active - 1, 0)], color=color, lw=1.8)
    axes.set(yscale="log", ylim=(0.5, None), xlabel="codes, sorted by use", ylabel="uses")
    axes.yaxis.set_major_formatter("{x:,.6g}")  # the logarithmic scale brought its own
    axes.set_xlim(0, max(len(values) for values in runs.values()) + 1)
    _legend(figure, axes, columns=1)
    return _picture(figure)


def usage_curves(
    curves: Mapping[str, Iterable[tuple[float, float]]],
    *,
    ylabel: str = "perplexity",
    xlabel: str = "training step",
    maximum: float | None = None,
    title: str | None = None,
) -> PIL.Image.Image:
    """A quantity over training, one line for each run.

    Args:
        curves: Run -> (step, value) pairs.
        ylabel: What the values are.
        xlabel: What the steps are.
        maximum: A dashed line at the largest possible value, such as the number of codes.
        title: A line above the picture.

    Raises:
        ValueError: A run has no points.
    """
    figure, axes = _figure(8, 3.6, title)
    if maximum is not None:
        axes.axhline(maximum, color=INK, lw=1, ls=(0, (4, 4)), alpha=0.5)
        axes.annotate(f"{maximum:,.6g}", (1, maximum), (4, 0), ("axes fraction", "data"), "offset points",
                      va="center", color=INK, alpha=0.7)  # fmt: skip
    for color, (name, curve) in zip(_colors(len(curves)), curves.items(), strict=True):
        points = np.array(list(curve), dtype=float).reshape(-1, 2)
        if len(points) == 0:
            raise ValueError(f"the curve of '{name}' has no points: expected (step, {ylabel}) pairs")
        axes.plot(*points.T, color=color, lw=2, label=name, marker="o" if len(points) < 15 else None, ms=4)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    _legend(figure, axes, columns=3)
    return _picture(figure)


def projection(
    embeddings: Values, codes: Values, used: Values, *, max_points: int = 3000, title: str | None = None
) -> PIL.Image.Image:
    """Embeddings P, all codes C and the codes in use Q, in the first two principal components of P and C together.

    Args:
        embeddings: Vectors before quantization (num_vectors, dim); or run -> vectors, for one panel each.
        codes: The effective codebook (num_codes, dim); or one for each run.
        used: Which codes are in use, bool or counts (num_codes,); or one for each run.
        max_points: Embeddings shown, taken at equal distances.
        title: A line above the picture.

    Raises:
        ValueError: The arguments name different runs.
    """
    runs = [_runs(values) for values in (embeddings, codes, used)]
    if not runs[0].keys() == runs[1].keys() == runs[2].keys():
        raise ValueError(f"different runs: {', '.join(str(sorted(run)) for run in runs)}")
    count = len(runs[0])
    figure, _ = _figure(max(5.2, 4 * count), 4.6, title, columns=count)
    for axes, name in zip(figure.axes, runs[0], strict=True):
        p, c, mask = runs[0][name], runs[1][name], runs[2][name]
        p = p[torch.linspace(0, len(p) - 1, min(len(p), max_points)).round().long()]
        flat, points, explained = _principal_components(p, c)
        is_used = mask.detach().cpu().bool().numpy()
        size = float(np.clip(9000 / max(is_used.sum(), 1), 14, 36))  # a few codes must be seen, many not hide the rest
        axes.scatter(flat[:, 0], flat[:, 1], s=9, color=EMBEDDINGS, lw=0, alpha=0.6, label="P: embeddings")
        axes.scatter(
            points[:, 0], points[:, 1], s=12, color=CODES, lw=0.7, marker="x", alpha=0.6, label="C: all codes"
        )
        axes.scatter(
            points[is_used, 0],
            points[is_used, 1],
            s=size,
            color=USED,
            lw=0.3,
            edgecolor=PAPER,
            label="Q: codes in use",
        )
        facts = f"{int(is_used.sum()):,} of {len(is_used):,} codes in use"
        axes.set_title(f"{name}\n{facts}" if name else facts, fontsize=11, color=INK)
        axes.set_xlabel(f"{explained[0]:.0%} of the variance", fontsize=9)
        axes.set_ylabel(f"{explained[1]:.0%}", fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[["top", "right"]].set_visible(True)
        axes.margins(0.05)
        axes.set_aspect("equal", adjustable="datalim")  # distances in the picture are distances
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, markerscale=1.8)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    return _picture(figure)


def _principal_components(p: torch.Tensor, c: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both sets in their common first two components, and the share of the variance of each component."""
    p, c = p.detach().cpu().double(), c.detach().cpu().double()
    # Each set weighs the same, however many points it has: else a large codebook hides where the embeddings spread.
    center = (p.mean(0) + c.mean(0)) / 2
    spread = torch.cat([(p - center) / len(p) ** 0.5, (c - center) / len(c) ** 0.5])
    _, values, axes = torch.linalg.svd(spread, full_matrices=False)
    if len(axes) < 2:
        axes = torch.nn.functional.pad(axes, (0, 0, 0, 2 - len(axes)))
        values = torch.nn.functional.pad(values, (0, 2 - len(values)))
    axes = axes[:2]
    # An SVD leaves the signs open; without a rule the picture could flip between runs.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    shares = values.square() / values.square().sum().clamp(min=1e-30)
    return ((p - center) @ axes.T).numpy(), ((c - center) @ axes.T).numpy(), shares[:2].numpy()


def _runs(values: Values) -> dict[str, torch.Tensor]:
    return {"": values} if isinstance(values, torch.Tensor) else dict(values)


def _colors(count: int) -> Sequence[str]:
    """Colours of runs; a single one gets the strong colour and not the grey of a baseline."""
    return RUN_COLORS[1:2] if count == 1 else [RUN_COLORS[index % len(RUN_COLORS)] for index in range(count)]


def _to_pil(image: torch.Tensor) -> PIL.Image.Image:
    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")


def _shortened(label: str, length: int = 24) -> str:
    return label if len(label) <= length else label[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _font(size: int) -> PIL.ImageFont.FreeTypeFont:
    import matplotlib

    return PIL.ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _figure(width: float, height: float, title: str | None, columns: int = 1) -> tuple[Figure, Axes]:
    # Not pyplot: it keeps figures alive and depends on the user's backend.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor=PAPER)
    if title:
        figure.suptitle(title, fontsize=13, color=INK)
    all_axes: Any = figure.subplots(1, columns, squeeze=False)[0]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[:].set_color("#b0b0b0")
        axes.tick_params(which="both", colors=INK, labelsize=10, length=0)
        axes.xaxis.set_major_formatter("{x:,.6g}")
        axes.yaxis.set_major_formatter("{x:,.6g}")
        axes.grid(color=FAINT, lw=0.8)
        axes.set_axisbelow(True)
    return figure, all_axes[0]


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    if any(axes.get_legend_handles_labels()):
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=10.5, labelcolor=INK)


def _picture(figure: Figure) -> PIL.Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return PIL.Image.open(buffer).convert("RGB")
