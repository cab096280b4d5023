"""Grids of tokens as pictures: a color for each code, and the cell under a click."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hf_vq.app.pictures import SIDE, cell_at, code_color, enlarged, frame, token_picture


def test_every_cell_has_the_color_of_its_code() -> None:
    """Also in grids that are wider than high; codes that follow each other look unlike."""
    tokens = np.array([[0, 1, 2, 1023], [5, 5, 6, 7]])
    pixels = np.asarray(token_picture(tokens))
    side = SIDE // 4

    assert pixels.shape == (2 * side, 4 * side, 3)
    for row, column in np.ndindex(2, 4):  # the corner of a cell: its number stands in the middle
        assert tuple(pixels[row * side + 2, column * side + 2]) == code_color(int(tokens[row, column]))
    colors = np.array([code_color(code) for code in range(1024)], dtype=int)
    assert np.abs(np.diff(colors, axis=0)).sum(1).min() > 60
    assert len({tuple(color) for color in colors}) > 900


def test_a_large_grid_has_cells_without_numbers() -> None:
    """With more cells than pixels for numbers each cell is of one color."""
    tokens = np.arange(64 * 64).reshape(64, 64)
    pixels = np.asarray(token_picture(tokens))

    assert (pixels.reshape(64, 8, 64, 8, 3).transpose(0, 2, 1, 3, 4).reshape(64 * 64, 64, 3).std(1) == 0).all()


def test_the_selected_cell_has_a_frame_and_no_other() -> None:
    """The frame lies inside its cell."""
    tokens = np.arange(12).reshape(3, 4)
    plain, framed = np.asarray(token_picture(tokens)), np.asarray(token_picture(tokens, (2, 1)))
    changed = np.argwhere((plain != framed).any(-1))
    side = SIDE // 4

    assert changed.min(0).tolist() == [2 * side, side] and changed.max(0).tolist() == [3 * side - 1, 2 * side - 1]
    picture = Image.new("RGB", (30, 30), "red")
    frame(picture, (0, 0), (3, 3))
    assert picture.getpixel((0, 0)) == (0, 0, 0) and picture.getpixel((12, 12)) == (255, 0, 0)


def test_a_click_finds_its_cell() -> None:
    """The first and the last pixel of a cell, and clicks on the very edge or beyond it."""
    size, grid = (400, 200), (2, 4)
    assert cell_at(0, 0, size, grid) == (0, 0)
    assert cell_at(99, 99, size, grid) == (0, 0)
    assert cell_at(100, 100, size, grid) == (1, 1)
    assert cell_at(399, 199, size, grid) == (1, 3)
    assert cell_at(400, 200, size, grid) == (1, 3) and cell_at(-1, -5, size, grid) == (0, 0)


def test_small_images_are_enlarged_without_smoothing() -> None:
    """By a whole factor; large ones stay as they are."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8))

    assert np.array_equal(np.asarray(enlarged(image, 100)), np.asarray(image).repeat(5, 0).repeat(5, 1))
    assert enlarged(image, 30) is image
