# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Thin images: the ends that a crop leaves out are cut off before the image is resized, and not after."""

_THIN = 16  # an image is thin if it would be resized to more than so many squares in a row
_SUPPORT = 3  # pixels beside a window that a resampling filter looks at, if it enlarges


def thin_margins(length: int, short: int, resized: int, start: int, crop: int) -> tuple[int, int]:
    """How many pixels can be cut off both ends of an image, before it is resized and then cropped.

    A strip of 5000 x 1 pixels becomes one of 1280000 x 256 if its shorter edge is resized to 256, and all but 256
    columns are thrown away. The margins are multiples of the shorter edge, so that they become multiples of `resized`
    and the rest stays in place; a neighborhood that the filter needs remains. Images that are not thin have no
    margins, and keep their pixels to the bit.

    Args:
        length: The longer edge of the image.
        short: Its shorter edge.
        resized: What the shorter edge is resized to.
        start: Where the crop begins along the resized longer edge.
        crop: Length of the crop along that edge.

    Returns:
        Pixels before and behind the part that is kept. The crop then begins at
        `start - before // short * resized`.
    """
    longer = resized * length // short
    if longer <= max(_THIN * resized, crop):
        return 0, 0
    # In units of the shorter edge. One that is reduced asks for up to two resized pixels more.
    beside = 1 + -(-_SUPPORT // short) + -(-_SUPPORT // resized)
    before = max(0, start // resized - beside)
    behind = max(0, (longer - start - crop) // resized - beside)
    return before * short, behind * short


__all__ = ["thin_margins"]
