"""Where images are: a place that the caller names, and the source that gives its rows, split by split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets

AnyDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset

# The words that name a split in folder and parquet file names, and the name the split gets.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


class UnknownSplitError(ValueError):
    """The data set has no split of that name."""


class Place(NamedTuple):
    """Where images are, as the caller of `load_images` says it."""

    dataset: str
    revision: str | None = None
    name: str | None = None

    @property
    def path(self) -> Path:
        """The place as a path, whether or not it exists."""
        return Path(self.dataset).expanduser()


class Source:
    """Images in a place; a subclass loads them.

    Args:
        place: The place.
        files: The files of each split.
    """

    def __init__(self, place: Place, files: dict[str, list[Any]] | None = None) -> None:
        self.place, self.files = place, files or {}

    def splits(self) -> list[str]:
        """The names of the splits."""
        return list(self.files)

    def load(self, split: str, streaming: bool) -> AnyDataset:
        """The rows of a split, of which one column holds undecoded images."""
        raise NotImplementedError

    def commit(self) -> str | None:
        """The commit of a Hub data set; None elsewhere."""
        return None

    def _check(self, split: str) -> None:
        for part in split.split("+"):
            if part.split("[")[0].strip() not in self.files:
                raise UnknownSplitError(
                    f"unknown split {split!r} of {self.place.dataset!r}: available are {', '.join(sorted(self.files))}"
                )
