"""Pictures of tokens: a grid in which every code has its color, and single cells of images."""

from __future__ import annotations

import colorsys

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

Cell = tuple[int, int]
"""Row and column of a token."""

SIDE = 512  # pixels of the longer side of what is shown
_GOLDEN = 0.618033988749895  # steps of this share of the color wheel never come close to an earlier one
_LEAST_FOR_NUMBERS = 28  # pixels of a cell


def code_color(code: int) -> tuple[int, int, int]:
    """The color of a code: neighbors in the codebook look unlike each other, and it is the same in every picture."""
    lightness = 0.55 + 0.2 * (code % 3) / 2
    red, green, blue = colorsys.hls_to_rgb(code * _GOLDEN % 1, lightness, 0.65)
    return round(255 * red), round(255 * green), round(255 * blue)


def token_picture(tokens: np.ndarray, selected: Cell | None = None) -> PIL.Image.Image:
    """Draws a grid of codes, each in its color and, where there is room, with its number.

    Args:
        tokens: Ids (h, w).
        selected: A cell that gets a frame.
    """
    height, width = tokens.shape
    side = max(1, SIDE // max(height, width))
    colors = np.array([[code_color(int(code)) for code in row] for row in tokens], dtype=np.uint8)
    picture = PIL.Image.fromarray(colors.repeat(side, 0).repeat(side, 1))
    draw = PIL.ImageDraw.Draw(picture)
    if side >= _LEAST_FOR_NUMBERS:
        font = PIL.ImageFont.load_default(side / 4)
        for row, column in np.ndindex(height, width):
            middle = ((column + 0.5) * side, (row + 0.5) * side)
            draw.text(middle, str(tokens[row, column]), fill="black", font=font, anchor="mm")
    if selected is not None:
        frame(picture, selected, (height, width))
    return picture


def frame(picture: PIL.Image.Image, cell: Cell, grid: tuple[int, int]) -> None:
    """Draws a frame around a cell of a picture, in place: black and white, to be seen on every color."""
    (row, column), (height, width) = cell, grid
    left, right = (round(edge * picture.width / width) for edge in (column, column + 1))
    top, bottom = (round(edge * picture.height / height) for edge in (row, row + 1))
    draw = PIL.ImageDraw.Draw(picture)
    for inset, color in ((0, "black"), (2, "white")):
        box = (left + inset, top + inset, max(right - 1 - inset, left + inset), max(bottom - 1 - inset, top + inset))
        draw.rectangle(box, outline=color, width=2)


def enlarged(image: PIL.Image.Image, side: int = SIDE) -> PIL.Image.Image:
    """A small image at a size at which one can see it, by a whole factor and not smoothed; large ones as they are."""
    factor = side // max(image.size)
    if factor < 2:
        return image
    return image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)


def cell_at(x: float, y: float, size: tuple[int, int], grid: tuple[int, ...]) -> Cell:
    """The cell under a point of a picture.

    Args:
        x, y: Pixels from the left and from the top.
        size: Width and height of the picture in pixels.
        grid: Rows and columns.
    """
    row, column = int(y * grid[0] / size[1]), int(x * grid[1] / size[0])
    return min(max(row, 0), grid[0] - 1), min(max(column, 0), grid[1] - 1)
