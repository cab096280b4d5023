"""Finds images: `load_images` reads the shipped sample, a folder, parquet files or a Hub data set, undecoded.

`SOURCES` lists where images can be. A new kind of place is one function there, which returns a `Source`.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from hf_vq.modeling.folders_vq import IMAGE_EXTENSIONS, walk_folder
from hf_vq.utils.text import shorten

logger = logging.getLogger(__name__)

AnyDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset

SAMPLE_DATASET = "noto-emoji-32"
# The words that name a split in folder and parquet file names, and the name the split gets.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
IMAGE_COLUMNS = ("image", "img", "images", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "cls", "class")
HUB_PREFIX = "hf://datasets/"


def load_images(
    dataset: str,
    split: str = "train",
    *,
    streaming: bool = False,
    image_column: str | None = None,
    revision: str | None = None,
    name: str | None = None,
) -> AnyDataset:
    """Finds the images of a data set and returns them undecoded.

    Args:
        dataset: One of
            - ``"noto-emoji-32"``, the sample shipped with the package (splits train and test);
            - a folder of images, nested as you like, but without links to folders. Sub-folders called train,
              validation or test make splits, else all is "train"; where every image lies in one of several
              sub-folders, these are the labels;
            - a parquet file, a pattern such as ``"shards/*.parquet"`` or a folder of parquet files (a file or folder
              name that starts with train, validation or test says the split);
            - the id of a data set on the Hub; ``"hf://datasets/NAME"`` asks the Hub whatever is here.
        split: Name of the split. Slices like ``"train[:90%]"`` work unless a Hub or parquet data set is streamed.
        streaming: Whether to return an `IterableDataset` that reads as it goes.
        image_column: Column that holds the images, where it cannot be told.
        revision: Branch, tag or commit of a Hub data set.
        name: Configuration of a Hub data set that has several.

    Returns:
        A data set with the columns ``image`` (``{"bytes", "path"}``, undecoded) and, where there is one, ``label``
        (int).

    Raises:
        FileNotFoundError: Nothing is there, or no image is in it.
        ValueError: Unknown split or column.
    """
    place = Place(str(dataset), revision, name)
    return _standard_columns(_find(place).load(split, streaming), image_column, repr(place.dataset))


def image_splits(dataset: str, *, revision: str | None = None, name: str | None = None) -> list[str]:
    """The names of the splits that `load_images` finds; takes its arguments and raises its errors."""
    return _find(Place(str(dataset), revision, name)).splits()


def pinned_revision(dataset: str, revision: str | None = None) -> str | None:
    """The commit that a revision of a Hub data set stands for now; None for the sample and for local files.

    Without a connection (`HF_HUB_OFFLINE`) it is the revision as given. Errors are those of `load_images`.
    """
    place = Place(str(dataset), revision)
    return None if place.path.exists() else _find(place).commit()


class UnknownSplitError(ValueError):
    """The data set has no split of that name."""


# ---- the sources


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


def find_sample(place: Place) -> Source | None:
    """The sample that is shipped with the package."""
    if place.dataset != SAMPLE_DATASET:
        return None
    root = Path(__file__).parent / "noto_emoji_32"
    return _ParquetFiles(place, _group_tables(sorted(root.glob("*.parquet")), root))


def find_in_folder(place: Place) -> Source | None:
    """A folder of images or of parquet files."""
    if not place.path.is_dir():
        return None
    images, tables = _walk(place.path)
    if images:
        return _ImageFiles(place, _group_images(images, place.path))
    if tables:
        return _ParquetFiles(place, _group_tables(tables, place.path))
    raise FileNotFoundError(
        f"no images found in {place.dataset!r}: expected files ending in .parquet or "
        f"{' '.join(sorted(IMAGE_EXTENSIONS))}, at any depth"
    )


def find_parquet_files(place: Place) -> Source | None:
    """A parquet file, or all that match a pattern."""
    is_pattern = glob.has_magic(str(place.path))
    if not is_pattern and place.path.suffix != ".parquet":
        return None
    tables = _matches(place.path) if is_pattern else [place.path.absolute()] * place.path.exists()
    if not tables:
        raise FileNotFoundError(f"no parquet file matches {place.dataset!r}")
    common = Path(os.path.commonpath([table.parent for table in tables]))
    # A single file that is named outright is the data set, whatever it is called.
    return _ParquetFiles(place, _group_tables(tables, common if is_pattern else None))


def _matches(pattern: Path) -> list[Path]:
    """The files that match a pattern, sorted. `**` enters no link to a folder, which could lead back up."""
    root, *parts = pattern.absolute().parts
    # Python before 3.13 refuses "**" beside other characters, where it means the same as "*".
    found = Path(root).glob("/".join(part if part == "**" else re.sub(r"\*+", "*", part) for part in parts))
    return sorted(file for file in found if _num_hidden(file) == _num_hidden(pattern))


def _num_hidden(path: Path) -> int:
    """How many parts of a path are hidden: wildcards stand for none that are."""
    return sum(part.startswith(".") for part in path.absolute().parts)


def find_on_hub(place: Place) -> Source | None:
    """A data set on the Hub: whatever is no path."""
    if place.path.exists():
        raise ValueError(f"{place.dataset!r} is a single file: expected a folder of images, parquet files or a Hub id")
    if place.path.is_absolute() or place.dataset.startswith((".", "~")) or len(place.path.parts) > 2:
        raise FileNotFoundError(f"no images found in {place.dataset!r}: there is no such folder or file")
    # Hardly anybody's: a name without its owner, or in a folder that is here.
    if len(place.path.parts) == 1 or place.path.parent.is_dir():
        raise FileNotFoundError(
            f"no images found in {place.dataset!r}: there is no such folder here; ask the Hub for it with "
            f"{HUB_PREFIX}{place.dataset}"
        )
    return _HubDataset(place)


# Each takes a place, and returns None if it is not of its kind. The first that knows it gives the images.
SOURCES: list[Callable[[Place], Source | None]] = [find_sample, find_in_folder, find_parquet_files, find_on_hub]


def _find(place: Place) -> Source:
    if place.dataset.startswith(HUB_PREFIX):
        return _HubDataset(place._replace(dataset=place.dataset.removeprefix(HUB_PREFIX)))
    return next(source for find in SOURCES if (source := find(place)) is not None)


class _ParquetFiles(Source):
    def load(self, split: str, streaming: bool) -> AnyDataset:
        self._check(split)
        return datasets.load_dataset("parquet", data_files=self.files, split=split, streaming=streaming)


def _group_tables(files: Sequence[Path], root: Path | None) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault("train" if root is None else _split_of(file.relative_to(root)), []).append(str(file))
    return splits


def _split_of(path: Path) -> str:
    """`train-00000-of-00002.parquet` and `train/0000.parquet` are of the split "train"; so is what names no split."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        word = re.split(r"[-_. ]", part.lower())[0]
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return "train"


# ---- folders


class _ImageFiles(Source):
    """Each file stands beside its path below the split's folder."""

    def load(self, split: str, streaming: bool) -> AnyDataset:
        self._check(split)
        everything = [inner for members in self.files.values() for _, inner in members]
        # One list of classes for all splits, so that a label means the same in each.
        classes = sorted({inner.parts[0] for inner in everything if len(inner.parts) > 1})
        labeled = len(classes) > 1 and all(len(inner.parts) > 1 for inner in everything)
        tables = {}
        for key, members in self.files.items():
            columns: dict[str, list] = {"image": [str(file) for file, _ in members]}
            features = datasets.Features({"image": datasets.Image(decode=False)})
            if labeled:
                columns["label"] = [classes.index(inner.parts[0]) for _, inner in members]
                features["label"] = datasets.ClassLabel(names=classes)
            tables[key] = datasets.Dataset.from_dict(columns, features=features)

        instructions = datasets.ReadInstruction.from_spec(split).to_absolute(
            {key: len(t) for key, t in tables.items()}
        )
        parts = [tables[part.splitname].select(range(part.from_, part.to)) for part in instructions]
        found = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
        return found.to_iterable_dataset(num_shards=max(1, min(len(found), 16))) if streaming else found


def _walk(root: Path) -> tuple[list[Path], list[Path]]:
    """The image files and the parquet files below a folder. A warning names the other files and links to folders."""
    images, rest, links = walk_folder(root)
    tables = [path for path in rest if path.suffix.lower() == ".parquet"]
    if images and rest:
        names = [str(path.relative_to(root)) for path in rest]
        logger.warning("%s: left out %d files that are not images: %s", root, len(names), shorten(names))
    if links:
        names = [str(path.relative_to(root)) for path in links]
        logger.warning(
            "%s: left out %d links to folders, which are not followed: %s. Copy or move what they lead to, or give "
            "the folder that holds it",
            root,
            len(names),
            shorten(names),
        )
    return images, tables


def _group_images(files: list[Path], root: Path) -> dict[str, list[tuple[Path, Path]]]:
    splits: dict[str, list[tuple[Path, Path]]] = {}
    tops = {file.relative_to(root).parts[0] for file in files if file.parent != root}
    has_splits = any(top.lower() in SPLIT_NAMES for top in tops)
    for file in files:
        inner = file.relative_to(root)
        if not has_splits:
            splits.setdefault("train", []).append((file, inner))
        elif inner.parts[0].lower() in SPLIT_NAMES and len(inner.parts) > 1:
            splits.setdefault(SPLIT_NAMES[inner.parts[0].lower()], []).append((file, Path(*inner.parts[1:])))
    return splits


# ---- the Hub


class _HubDataset(Source):
    def splits(self) -> list[str]:
        with self._explained():
            return datasets.get_dataset_split_names(self.place.dataset, self.place.name, revision=self.place.revision)

    def load(self, split: str, streaming: bool) -> AnyDataset:
        place = self.place
        with self._explained():
            return datasets.load_dataset(
                place.dataset, place.name, split=split, streaming=streaming, revision=place.revision
            )

    def commit(self) -> str | None:
        revision = self.place.revision
        if is_offline_mode():
            return revision
        try:
            return HfApi().dataset_info(self.place.dataset, revision=revision).sha
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise FileNotFoundError(
                f"no images found in {self.place.dataset!r}: there is no such Hub data set that you can read, or it "
                f"has no revision {revision or 'main'!r} ({error})"
            ) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says what else a name that is not on the Hub could have been."""
        try:
            yield
        except datasets.exceptions.DatasetNotFoundError as error:
            raise FileNotFoundError(
                f"no images found in {self.place.dataset!r}: expected {SAMPLE_DATASET!r}, an existing folder, parquet "
                f"files, or the id of a Hub data set that you can read ({error})"
            ) from error


# ---- columns


def _standard_columns(found: Any, image_column: str | None, where: str) -> AnyDataset:
    if found.features is None:  # a stream whose files do not declare their columns
        found = found._resolve_features()
    features = found.features
    columns = f"the columns of {where} are {', '.join(features)}"
    if image_column is not None and image_column not in features:
        raise ValueError(f"unknown image column {image_column!r}: {columns}")
    if image_column is None:
        typed = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
        named = [key for key in IMAGE_COLUMNS if key in (typed or features)]
        candidates = named[:1] or typed
        if len(candidates) != 1:
            raise ValueError(f"cannot tell which column holds the images, name it with image_column: {columns}")
        image_column = candidates[0]
    label_column = next((key for key in LABEL_COLUMNS if key != image_column and _is_label(features.get(key))), None)
    found = found.select_columns([image_column] + ([label_column] if label_column else []))
    names = {image_column: "image"} | ({label_column: "label"} if label_column else {})
    names = {old: new for old, new in names.items() if old != new}
    found = found.rename_columns(names) if names else found
    return found.cast_column("image", datasets.Image(decode=False))


def _is_label(feature: Any) -> bool:
    return isinstance(feature, datasets.ClassLabel) or str(getattr(feature, "dtype", "")).startswith(("int", "uint"))
