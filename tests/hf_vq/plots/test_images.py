"""Pictures of images: what is drawn where."""

import numpy as np
import PIL.Image
import pytest
import torch

from hf_vq.plots.images import reconstruction_grid, sample_sheet


def colored(image: PIL.Image.Image, color: str) -> int:
    """Counts the pixels of exactly this color."""
    return int((np.asarray(image) == np.array(PIL.Image.new("RGB", (1, 1), color).getpixel((0, 0)))).all(-1).sum())


def test_grid_shows_the_pixels_of_every_row():
    """Each image appears in its row, enlarged by a whole factor and otherwise unchanged."""
    originals = torch.full((3, 3, 8, 8), -1.0)
    originals[:, 0] = 1.0  # red
    decoded = torch.full((3, 3, 8, 8), -1.0)
    decoded[:, 2] = 5.0  # blue, and beyond the range
    grid = reconstruction_grid(originals, {"plain VQ": decoded}, max_images=2, width=300)

    red, blue = colored(grid, "#ff0000"), colored(grid, "#0000ff")
    assert red == blue and red % (2 * 64) == 0
    factor = (red // 128) ** 0.5
    assert factor == int(factor) and factor >= 8
    rows = (np.asarray(grid) == (255, 0, 0)).all(-1).any(1).nonzero()[0]
    assert rows.max() < (np.asarray(grid) == (0, 0, 255)).all(-1).any(1).nonzero()[0].min()


def test_grid_takes_gray_and_large_images():
    """One channel is drawn as gray, and images that are too large are made smaller."""
    grid = reconstruction_grid(torch.zeros(4, 1, 512, 512), {"a": torch.zeros(4, 1, 512, 512)}, width=600)

    assert abs(grid.width - 600) < 20
    assert colored(grid, "#808080") > 2 * 4 * 100 * 100


def ink(image: PIL.Image.Image, width: int) -> int:
    """Counts dark pixels in the left of a picture, where labels are."""
    return int((np.asarray(image.convert("L"))[:, :width] < 128).sum())


def test_labels_are_wrapped_and_never_cut_off():
    """A long label has all its ink, in rows that grow with it; nothing reaches the edge of the picture."""
    images = torch.ones(8, 3, 16, 16)
    pictures = [reconstruction_grid(images, {"x" * count: images}) for count in (20, 40, 200)]
    plain = ink(reconstruction_grid(images, {" ": images}), 200)
    letters = [(ink(picture, 260) - plain) / count for picture, count in zip(pictures, (20, 40, 200), strict=True)]

    assert letters[1] == pytest.approx(letters[0], rel=0.02) and letters[2] == pytest.approx(letters[0], rel=0.02)
    assert pictures[2].height > pictures[1].height == pictures[0].height
    assert ink(pictures[2], 10) == 0 and pictures[2].width <= 1100 + 40
    assert reconstruction_grid(images, {"original": images}).size == reconstruction_grid(images, {"an": images}).size
    names = ("a class", "a class with a name of many words, of which none may be missing " * 3)
    white = [PIL.Image.new("RGB", (8, 8), "white")] * 2
    sheets = [sample_sheet(white, row_labels=[name], columns=2) for name in names]
    assert ink(sheets[1], 1000) > 20 * ink(sheets[0], 1000)


def test_columns_that_are_no_pairs_are_shifted():
    """Every second row begins half an image further right, and all images are still whole."""
    images = [PIL.Image.new("RGB", (8, 8), color) for color in ("red", "red", "blue", "blue", "lime", "lime")]
    sheet = np.asarray(sample_sheet(images, row_labels=["a", "b", "c"], columns=2, width=300, are_pairs=False))
    aligned = np.asarray(sample_sheet(images, row_labels=["a", "b", "c"], columns=2, width=300))
    red, blue, lime = ((sheet == color).all(-1) for color in ((255, 0, 0), (0, 0, 255), (0, 255, 0)))

    assert red.sum() == blue.sum() == lime.sum() and sheet.shape[1] <= 300
    side = int((red.sum() / 2) ** 0.5)
    assert blue.any(0).argmax() - red.any(0).argmax() == round((side + 6) / 2)
    assert lime.any(0).argmax() == red.any(0).argmax()
    assert (aligned == (0, 0, 255)).all(-1).any(0).argmax() == (aligned == (255, 0, 0)).all(-1).any(0).argmax()


def test_grid_refuses_reconstructions_of_other_images():
    """A row of another shape is an error that names it, and so is an empty batch."""
    with pytest.raises(ValueError, match="'small' has shape"):
        reconstruction_grid(torch.zeros(2, 3, 8, 8), {"small": torch.zeros(2, 3, 4, 4)})
    with pytest.raises(ValueError, match="expected images"):
        reconstruction_grid(torch.zeros(0, 3, 8, 8), {})


def test_sheet_shows_every_sample_in_its_row():
    """Samples are enlarged by a whole factor or shrunk to fit, three to a row, with a label left of each row."""
    samples = [PIL.Image.new("RGB", (8, 8), color) for color in ("red", "red", "red", "blue")]
    sheet = sample_sheet(samples, row_labels=["cats", "a very long name of a class, too long"], columns=3, width=600)

    factor = (colored(sheet, "#0000ff") // 64) ** 0.5
    assert factor == int(factor) and factor >= 4
    assert colored(sheet, "#ff0000") == 3 * colored(sheet, "#0000ff")
    pixels = np.asarray(sheet)
    red, blue = ((pixels == color).all(-1) for color in ((255, 0, 0), (0, 0, 255)))
    assert red.any(1).nonzero()[0].max() < blue.any(1).nonzero()[0].min()
    assert red.any(0).argmax() == blue.any(0).argmax() > 100  # the labels' place
    assert sample_sheet(samples, columns=3, width=300).width <= 300
    assert sample_sheet([PIL.Image.new("L", (512, 512))] * 2, columns=2, width=300).width <= 300


def test_sheet_refuses_labels_that_do_not_fit():
    """A label missing for a row, or no sample at all, is an error."""
    for samples, labels in (([], None), ([PIL.Image.new("L", (8, 8))] * 3, ["a"])):
        with pytest.raises(ValueError, match="a label for each row of 2"):
            sample_sheet(samples, row_labels=labels, columns=2)
