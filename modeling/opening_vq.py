# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Opens images. Broken metadata make no image unreadable, and very large JPEGs are decoded at a reduced size."""

import os
from contextlib import suppress
from io import BytesIO
from typing import IO, Any

from PIL import ExifTags, Image

_LARGE = 64_000_000  # pixels beyond which a JPEG is decoded at 1/2, 1/4 or 1/8 of its size
_SHORTEST = 2048  # pixels of the shorter edge that such a reduction leaves at least
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What a PNG's pixels depend on. Everything else (text, EXIF, profiles) can be broken without a loss.
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
_ORIENTATION = ExifTags.Base.Orientation
_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: str | bytes | IO[bytes], shortest: int | None = None) -> Image.Image:
    """Opens and decodes an image. It keeps its mode.

    A JPEG of more than 64 million pixels is decoded at 1/2, 1/4 or 1/8 of its size, with at least 2,048 pixels left
    along the shorter edge, since it would take gigabytes. Its pixels are averages of blocks, and differ by a few
    levels from those of the whole image once both are resized. All other images keep their pixels to the bit.

    Args:
        source: A path, the bytes of a file, or a file.
        shortest: Decode smaller JPEGs at 1/2, 1/4 or 1/8 of their size, too, as long as so many pixels are left along
            the shorter edge.

    Raises:
        Exception: Whatever Pillow raises for pixels that cannot be decoded.
    """
    file: Any = BytesIO(source) if isinstance(source, bytes) else source
    try:
        return _decode(file, shortest)
    except Exception:
        for kept in ((*_PNG_PIXELS, b"eXIf"), _PNG_PIXELS):  # the orientation is worth a try
            pixels = _png_chunks(file, kept)
            with suppress(Exception):
                return _decode(BytesIO(pixels))
        raise


def load(image: Image.Image) -> None:
    """Decodes an image that was opened before. Text behind its pixels that Pillow refuses costs nothing."""
    try:
        image.load()
    except (ValueError, SyntaxError):
        if getattr(image, "tile", True):  # what is still to be decoded
            raise
        image.load()


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 (upright) if there is none, or if its EXIF data are broken."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
        return found if found in _TRANSPOSED else 1
    except Exception:  # Pillow's parsers raise SyntaxError, struct.error, ValueError and more
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Turns an image by its EXIF orientation. The result has no metadata that would turn it again."""
    method = _TRANSPOSED.get(orientation(image))
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return turned


def _decode(file: Any, shortest: int | None = None) -> Image.Image:
    with Image.open(file) as image:
        short = min(image.size)
        if image.width * image.height > _LARGE:
            shortest = min(shortest or _SHORTEST, _SHORTEST)
        if image.format == "JPEG" and shortest is not None and short >= 2 * shortest:
            factor = next(factor for factor in (8, 4, 2) if short >= factor * shortest)
            image.draft(image.mode, (image.width // factor, image.height // factor))
        image.load()
        orientation(image)  # a PNG can hold its EXIF data behind its pixels, and closing ends the reading
        return image


def _png_chunks(file: Any, names: tuple[bytes, ...]) -> bytes:
    """A PNG with only the chunks of these names; empty if the file is no PNG."""
    if isinstance(file, (str, os.PathLike)):
        if not os.path.isfile(file):
            return b""
        with open(file, "rb") as opened:
            return _png_chunks(opened, names)
    file.seek(0)
    if file.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
        return b""
    kept = [_PNG_SIGNATURE]
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in names:
            kept += [head, file.read(length + 4)]  # with its checksum
        else:
            file.seek(length + 4, os.SEEK_CUR)
        if kind == b"IEND":
            break
    return b"".join(kept)


__all__ = ["load", "open_image", "orientation", "upright"]
