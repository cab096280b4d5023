"""Pictures of images: originals above their reconstructions, and sheets of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import PIL.Image
import PIL.ImageDraw
import torch

from hf_vq.modeling.pixel_range_vq import SIGNED, convert_pixels
from hf_vq.plots.labels import draw_left_of, height_of, printable, width_of, wrapped
from hf_vq.plots.style import INK, PAPER

_GAP, _MARGIN = 6, 14
_LABEL_WIDTH = 240  # pixels at which labels are wrapped


def reconstruction_grid(
    originals: torch.Tensor,
    reconstructions: Mapping[str, torch.Tensor],
    *,
    pixel_range: Sequence[float] = SIGNED,
    max_images: int = 10,
    width: int = 1100,
) -> PIL.Image.Image:
    """Draws images above their reconstructions, in one labeled row for each.

    Args:
        originals: Images (batch, 1 or 3, height, width) in `pixel_range`.
        reconstructions: Mapping from row label to reconstructions of the same shape. Long labels are wrapped.
        pixel_range: Range of all these images, as in the configuration.
        max_images: Number of columns. Further images are left out.
        width: Approximate width of the picture in pixels. Small images are enlarged by whole factors, not smoothed.

    Raises:
        ValueError: If a reconstruction has another shape than the originals, or if there is no image.
    """
    for name, values in reconstructions.items():
        if values.shape != originals.shape:
            raise ValueError(
                f"Reconstructions must have the shape of the originals, {tuple(originals.shape)}, but {name!r} has "
                f"shape {tuple(values.shape)}."
            )
    if originals.ndim != 4 or originals.shape[0] == 0:
        raise ValueError(
            f"`reconstruction_grid` expected images (batch, channels, height, width), at least one, got the shape "
            f"{tuple(originals.shape)}."
        )
    labels = _Labels(["original", *printable(list(reconstructions))])
    rows = [originals, *reconstructions.values()]
    columns = min(max_images, originals.shape[0])
    height, side = originals.shape[-2:]
    room = max(1, (width - labels.width - _MARGIN) // columns - _GAP)
    scale = round(room / side)
    cell_height, cell_width = (height * scale, side * scale) if scale else (max(1, height * room // side), room)
    filter_ = PIL.Image.Resampling.NEAREST if scale else PIL.Image.Resampling.LANCZOS
    cells = [
        [_to_pil(image, pixel_range).resize((cell_width, cell_height), filter_) for image in values[:columns]]
        for values in rows
    ]
    return _draw_rows(cells, labels)


def sample_sheet(
    images: Sequence[PIL.Image.Image],
    *,
    row_labels: Sequence[str] | None = None,
    columns: int = 8,
    width: int = 1100,
    instead: Sequence[str] | None = None,
    are_pairs: bool = True,
) -> PIL.Image.Image:
    """Draws generated images in rows, each with its label.

    Args:
        images: Images of one size, row after row.
        row_labels: One label for each row, such as the names of the classes. Long labels are wrapped.
        columns: Number of images in a row.
        width: Approximate width of the picture in pixels. Small images are enlarged by whole factors, not smoothed.
        instead: What to print in place of each label that has letters of no installed font, such as "class 3".
        are_pairs: Whether the images of a column have something in common. If not, every second row is shifted by half
            an image, so that nobody compares an image with the one below.

    Raises:
        ValueError: If there is no image, or if the number of labels is not the number of rows.
    """
    rows = -(-len(images) // columns)
    if not images or (row_labels is not None and len(row_labels) != rows):
        raise ValueError(
            f"`sample_sheet` needs images, and a label for each row of {columns}, got {len(images)} images and the "
            f"labels {row_labels}."
        )
    labels = _Labels(printable(row_labels, instead) if row_labels else [])
    shift = 0 if are_pairs or rows < 2 else 0.5
    room = int((width - labels.width - _MARGIN) / (columns + shift)) - _GAP
    size = images[0].size
    scale = room // size[0] or room / size[0]
    cell_size = tuple(max(1, round(side * scale)) for side in size)
    filter_ = PIL.Image.Resampling.NEAREST if scale >= 1 else PIL.Image.Resampling.LANCZOS
    cells = [image.convert("RGB").resize(cell_size, filter_) for image in images]  # type: ignore[arg-type]
    return _draw_rows(
        [cells[first : first + columns] for first in range(0, len(cells), columns)],
        labels,
        shift=round(shift * (cell_size[0] + _GAP)),
    )


class _Labels:
    """The labels left of rows, wrapped."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.lines = [wrapped(label, _LABEL_WIDTH) for label in labels]
        widest = max((width_of(line) for lines in self.lines for line in lines), default=0)
        self.width = round(widest) + 2 * _MARGIN if labels else _MARGIN

    def of(self, row: int) -> list[str]:
        """The lines of a row's label."""
        return self.lines[row] if self.lines else []


def _draw_rows(rows: Sequence[Sequence[PIL.Image.Image]], labels: _Labels, shift: int = 0) -> PIL.Image.Image:
    """Draws images of one size with a label left of each row. Every second row begins `shift` pixels further right."""
    cell_width, cell_height = rows[0][0].size
    heights = [max(cell_height, height_of(labels.of(row))) for row in range(len(rows))]
    size = (
        labels.width + max(map(len, rows)) * (cell_width + _GAP) - _GAP + _MARGIN + shift,
        sum(heights) + (len(rows) - 1) * _GAP + 2 * _MARGIN,
    )
    canvas = PIL.Image.new("RGB", size, PAPER)
    draw = PIL.ImageDraw.Draw(canvas)
    top = _MARGIN
    for row, (images, height) in enumerate(zip(rows, heights, strict=True)):
        draw_left_of(draw, labels.width - _MARGIN, top + height // 2, labels.of(row), INK)
        for column, image in enumerate(images):
            left = labels.width + column * (cell_width + _GAP) + row % 2 * shift
            canvas.paste(image, (left, top + (height - cell_height) // 2))
        top += height + _GAP
    return canvas


def _to_pil(image: torch.Tensor, pixel_range: Sequence[float]) -> PIL.Image.Image:
    image = convert_pixels(image.detach().float().cpu(), pixel_range, SIGNED)
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
