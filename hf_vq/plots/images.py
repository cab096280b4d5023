"""Pictures of images: originals above their reconstructions, and sheets of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from hf_vq.modeling.pixel_range_vq import SIGNED, convert_pixels
from hf_vq.plots.style import INK, PAPER


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
        reconstructions: Mapping from row label to reconstructions of the same shape.
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
    font = _font(17)
    rows = [("original", originals), *((_shortened(name, 40), values) for name, values in reconstructions.items())]
    columns = min(max_images, originals.shape[0])
    gap, margin = 6, 14
    label_width = max(int(font.getlength(name)) for name, _ in rows) + 2 * margin
    height, side = originals.shape[-2:]
    room = max(1, (width - label_width - margin) // columns - gap)
    scale = round(room / side)
    cell_height, cell_width = (height * scale, side * scale) if scale else (max(1, height * room // side), room)

    canvas_width = label_width + columns * (cell_width + gap) - gap + margin
    canvas = PIL.Image.new("RGB", (canvas_width, len(rows) * (cell_height + gap) - gap + 2 * margin), PAPER)
    draw = PIL.ImageDraw.Draw(canvas)
    for row, (name, values) in enumerate(rows):
        top = margin + row * (cell_height + gap)
        draw.text((label_width - margin, top + cell_height // 2), name, fill=INK, font=font, anchor="rm")
        for column in range(columns):
            filter_ = PIL.Image.Resampling.NEAREST if scale else PIL.Image.Resampling.LANCZOS
            image = _to_pil(values[column], pixel_range).resize((cell_width, cell_height), filter_)
            canvas.paste(image, (label_width + column * (cell_width + gap), top))
    return canvas


def sample_sheet(
    images: Sequence[PIL.Image.Image],
    *,
    row_labels: Sequence[str] | None = None,
    columns: int = 8,
    width: int = 1100,
) -> PIL.Image.Image:
    """Draws generated images in rows, each with its label.

    Args:
        images: Images of one size, row after row.
        row_labels: One label for each row, such as the names of the classes. Long labels are cut off.
        columns: Number of images in a row.
        width: Approximate width of the picture in pixels. Small images are enlarged by whole factors, not smoothed.

    Raises:
        ValueError: If there is no image, or if the number of labels is not the number of rows.
    """
    rows = -(-len(images) // columns)
    if not images or (row_labels is not None and len(row_labels) != rows):
        raise ValueError(
            f"`sample_sheet` needs images, and a label for each row of {columns}, got {len(images)} images and the "
            f"labels {row_labels}."
        )
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


def _to_pil(image: torch.Tensor, pixel_range: Sequence[float]) -> PIL.Image.Image:
    image = convert_pixels(image.detach().float().cpu(), pixel_range, SIGNED)
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")


def _shortened(label: str, length: int = 24) -> str:
    return label if len(label) <= length else label[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _font(size: int) -> PIL.ImageFont.FreeTypeFont:
    import matplotlib

    return PIL.ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
