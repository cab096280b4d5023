# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The images of a folder."""

import os
from pathlib import Path
from typing import NamedTuple

IMAGE_EXTENSIONS = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .avif .qoi".split()
)


class FolderContent(NamedTuple):
    """What lies in a folder, at any depth, each sorted."""

    images: list[Path]
    others: list[Path]
    links: list[Path]


def walk_folder(root: Path) -> FolderContent:
    """The image files, the other files, and the links to folders below a folder.

    The walk is that of `datasets`' imagefolder. It enters no hidden folder (.ipynb_checkpoints, .thumbnails), no
    special one (__pycache__, __MACOSX) and no link to a folder, which could lead back up and repeat every image. Links
    to files are files. Hidden files are left out.
    """
    images: list[Path] = []
    others: list[Path] = []
    links: list[Path] = []
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__")))
        links += (path for name in inner if (path := Path(folder, name)).is_symlink())
        for file in files:
            if not file.startswith("."):
                path = Path(folder, file)
                (images if path.suffix.lower() in IMAGE_EXTENSIONS else others).append(path)
    return FolderContent(sorted(images), sorted(others), sorted(links))


__all__ = ["IMAGE_EXTENSIONS", "FolderContent", "walk_folder"]
