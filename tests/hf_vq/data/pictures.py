"""Pictures for the tests of data sets."""

import io

import numpy as np
import PIL.Image


def noise(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """An RGB image in which every pixel is different."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def encoded(image: PIL.Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
