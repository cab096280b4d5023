"""Images in parquet files and in tar files (WebDataset), and streams of them in parts whose lengths are known."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import fsspec
import pyarrow.parquet as pq
from datasets.splits import SplitDict, SplitInfo

from hf_vq.data.places import SPLIT_NAMES, AnyDataset, Place, Source
from hf_vq.utils.text import shorten

_BUILDERS = {".parquet": "parquet"} | dict.fromkeys((".tar", ".tar.gz", ".tgz"), "webdataset")
_MAX_PARTS = 50_000  # of a stream: opening one of them takes time in proportion to their number


def builder_of(file: Path) -> str | None:
    """The builder of `datasets` that reads a file, by the end of its name; None if none does."""
    return next((builder for end, builder in _BUILDERS.items() if file.name.lower().endswith(end)), None)


def find_shard_files(place: Place) -> Source | None:
    """A parquet or tar file, or all that match a pattern."""
    is_pattern = glob.has_magic(str(place.path))
    if not is_pattern and builder_of(place.path) is None:
        return None
    found = _matches(place.path) if is_pattern else [place.path.absolute()] * place.path.exists()
    if not found:
        raise FileNotFoundError(f"no file matches {place.dataset!r}")
    builders = {builder_of(file) for file in found}
    if len(builders) > 1 or None in builders:
        ends = shorten(sorted({file.suffix or file.name for file in found}))
        raise ValueError(f"{place.dataset!r} matches files of the kinds {ends}: expected parquet or tar files alone")
    common = Path(os.path.commonpath([file.parent for file in found]))
    # A single file that is named outright is the data set, whatever it is called.
    return ShardFiles(place, found, common if is_pattern else None)


def _matches(pattern: Path) -> list[Path]:
    """The files that match a pattern, sorted. `**` enters no link to a folder, which could lead back up."""
    root, *parts = pattern.absolute().parts
    # Python before 3.13 refuses "**" beside other characters, where it means the same as "*".
    found = Path(root).glob("/".join(part if part == "**" else re.sub(r"\*+", "*", part) for part in parts))
    return sorted(file for file in found if _num_hidden(file) == _num_hidden(pattern))


def _num_hidden(path: Path) -> int:
    """How many parts of a path are hidden: wildcards stand for none that are."""
    return sum(part.startswith(".") for part in path.absolute().parts)


class ShardFiles(Source):
    """Parquet files, or tar files with members as WebDataset wants them: KEY.jpg, KEY.cls, then those of the next key.

    Args:
        place: The place.
        files: The files, all of one kind.
        root: The folder below which their names tell their splits. None if all of them are of the split "train".
    """

    def __init__(self, place: Place, files: Sequence[Path], root: Path | None) -> None:
        super().__init__(place)
        self._builder = builder_of(files[0]) or "parquet"
        for file in files:
            split = "train" if root is None else _split_of(file.relative_to(root), self._builder == "webdataset")
            self.files.setdefault(split, []).append(str(file))

    def load(self, split: str, streaming: bool) -> AnyDataset:
        """The rows of a split, from `datasets`' builder."""
        self._check(split)
        # Of one split alone where it is no slice: the builder looks into files of each.
        files = {split: self.files[split]} if split in self.files else self.files
        found = datasets.load_dataset(self._builder, data_files=files, split=split, streaming=streaming)
        return in_row_groups(found, self.files[split]) if streaming and self._builder == "parquet" else found


def in_row_groups(stream: datasets.IterableDataset, files: Sequence[str]) -> datasets.IterableDataset:
    """A stream of parquet files in its row groups, as far as `datasets` can tell them apart, with their lengths."""
    with ThreadPoolExecutor(16) as executor:  # a request for each file of the Hub
        groups = list(executor.map(_row_groups, files))
    # Finer than files, so that many processes and restarts read no more than they need.
    if hasattr(stream, "reshard") and sum(map(len, groups)) <= _MAX_PARTS:
        return with_lengths(stream.reshard(), [rows for group in groups for rows in group])
    return with_lengths(stream, [sum(group) for group in groups])


def _row_groups(file: str) -> list[int]:
    """The rows of each row group of a parquet file, here or at an address."""
    with fsspec.open(file) as opened:
        metadata = pq.read_metadata(opened)
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def with_lengths(stream: datasets.IterableDataset, lengths: list[int]) -> datasets.IterableDataset:
    """A stream that says how many rows each of its files or row groups has."""
    name = str(stream.split)
    stream.info.splits = SplitDict({name: SplitInfo(name, num_examples=sum(lengths), shard_lengths=lengths)})
    return stream


def _split_of(path: Path, anywhere: bool) -> str:
    """`train-00000-of-00002.parquet` and `train/0000.parquet` are of the split "train"; so is what names no split.

    Of tar files, which often have the data set's name in front, the word may stand anywhere in a name.
    """
    for part in (path.name.split(".")[0], *reversed(path.parts[:-1])):
        words = re.split(r"[-_. ]", part.lower())
        for word in words if anywhere else words[:1]:
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return "train"
