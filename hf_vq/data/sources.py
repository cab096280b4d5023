"""Finds images: `load_images` reads the shipped sample, a folder, parquet or tar files or a Hub data set, undecoded.

`SOURCES` lists where images can be. A new kind of place is one function there, which returns a `Source`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from hf_vq.data.places import SPLIT_NAMES, AnyDataset, Place, Source
from hf_vq.data.shard_files import ShardFiles, builder_of, find_shard_files, in_row_groups, with_lengths
from hf_vq.hub.repository import require_hub_id
from hf_vq.modeling.folders_vq import IMAGE_EXTENSIONS, walk_folder
from hf_vq.utils.text import DATA_PREFIX, shorten

logger = logging.getLogger(__name__)

SAMPLE_DATASET = "noto-emoji-32"
IMAGE_COLUMNS = ("image", "img", "images", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "cls", "class")


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
            - a parquet or tar file, a pattern such as ``"shards/*.parquet"`` or a folder of such files (a file or
              folder name that starts with train, validation or test says the split; of tar files one that has such a
              word). Tar files are those of WebDataset: KEY.jpg and KEY.cls for each image, one after the other;
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
    return standard_columns(_find(place).load(split, streaming), image_column, repr(place.dataset))


def image_splits(dataset: str, *, revision: str | None = None, name: str | None = None) -> list[str]:
    """The names of the splits that `load_images` finds; takes its arguments and raises its errors."""
    return _find(Place(str(dataset), revision, name)).splits()


def pinned_revision(dataset: str, revision: str | None = None) -> str | None:
    """The commit that a revision of a Hub data set stands for now; None for the sample and for local files.

    Without a connection (`HF_HUB_OFFLINE`) it is the revision as given. Errors are those of `load_images`.
    """
    place = Place(str(dataset), revision)
    return None if place.path.exists() else _find(place).commit()


def require_place(dataset: str | None) -> None:
    """Raises the error of `load_images` if nothing is under a name, before the Hub is asked or a folder is listed."""
    if dataset is not None and not Place(dataset).path.exists():
        _find(Place(dataset))


# ---- the sources


def find_sample(place: Place) -> Source | None:
    """The sample that is shipped with the package."""
    if place.dataset != SAMPLE_DATASET:
        return None
    root = Path(__file__).parent / "noto_emoji_32"
    return ShardFiles(place, sorted(root.glob("*.parquet")), root)


def find_in_folder(place: Place) -> Source | None:
    """A folder of images, of parquet files or of tar files."""
    if not place.path.is_dir():
        return None
    images, shards = _walk(place.path)
    if images:
        return _ImageFiles(place, _group_images(images, place.path))
    if shards:
        return ShardFiles(place, shards, place.path)
    raise FileNotFoundError(
        f"no images found in {place.dataset!r}: expected files ending in .parquet, .tar or "
        f"{' '.join(sorted(IMAGE_EXTENSIONS))}, at any depth"
    )


def find_on_hub(place: Place) -> Source | None:
    """A data set on the Hub: whatever is no path."""
    if place.path.exists():
        raise ValueError(
            f"{place.dataset!r} is a single file: expected a folder of images, parquet or tar files, or a Hub id"
        )
    require_hub_id(place.dataset, "no images found", DATA_PREFIX)
    return _HubDataset(place)


# Each takes a place, and returns None if it is not of its kind. The first that knows it gives the images.
SOURCES: list[Callable[[Place], Source | None]] = [find_sample, find_in_folder, find_shard_files, find_on_hub]


def _find(place: Place) -> Source:
    if place.dataset.startswith(DATA_PREFIX):
        return _HubDataset(place._replace(dataset=require_hub_id(place.dataset, "no images found", DATA_PREFIX)))
    return next(source for find in SOURCES if (source := find(place)) is not None)


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
        if not streaming:
            return found
        count = max(1, min(len(found), 128))
        lengths = [len(range(len(found))[number::count]) for number in range(count)]
        return with_lengths(found.to_iterable_dataset(num_shards=count), lengths)


def _walk(root: Path) -> tuple[list[Path], list[Path]]:
    """The images below a folder, and its parquet files or else its tar files.

    A warning names links to folders, and what is left out beside images or parquet files.
    """
    images, rest, links = walk_folder(root)
    kinds = {kind: [path for path in rest if builder_of(path) == kind] for kind in ("parquet", "webdataset")}
    left_out, taken = (rest, "images") if images else (kinds["webdataset"], "parquet files")
    if left_out and (images or kinds["parquet"]):
        names = [str(path.relative_to(root)) for path in left_out]
        logger.warning("%s: left out %d files that are not %s: %s", root, len(names), taken, shorten(names))
    if links:
        names = [str(path.relative_to(root)) for path in links]
        logger.warning(
            "%s: left out %d links to folders, which are not followed: %s. Copy or move what they lead to, or give "
            "the folder that holds it",
            root,
            len(names),
            shorten(names),
        )
    return images, kinds["parquet"] or kinds["webdataset"]


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
            if not streaming:
                return datasets.load_dataset(place.dataset, place.name, split=split, revision=place.revision)
            builder = datasets.load_dataset_builder(place.dataset, place.name, revision=place.revision)
            found, files = builder.as_streaming_dataset(split), (builder.config.data_files or {}).get(split, [])
            are_tables = files and all(str(file).endswith(".parquet") for file in files)
            return in_row_groups(found, files) if are_tables else found

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
                f"or tar files, or the id of a Hub data set that you can read ({error})"
            ) from error


# ---- columns


def standard_columns(found: Any, image_column: str | None, where: str) -> AnyDataset:
    """A data set with the columns ``image``, undecoded, and, where there is one, ``label``.

    Raises:
        ValueError: There is no such column, or it cannot be told which one holds the images.
    """
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
            raise ValueError(
                "cannot tell which column holds the images, name it with image_column, or rename it to image, with "
                f"`dataset.rename_column`: {columns}"
            )
        image_column = candidates[0]
    label_column = next((key for key in LABEL_COLUMNS if key != image_column and _is_label(features.get(key))), None)
    found = found.select_columns([image_column] + ([label_column] if label_column else []))
    # Before columns are renamed: a stream decodes its images for that, and would encode them once more.
    found = found.cast_column(image_column, datasets.Image(decode=False))
    names = {image_column: "image"} | ({label_column: "label"} if label_column else {})
    names = {old: new for old, new in names.items() if old != new}
    return found.rename_columns(names) if names else found


def _is_label(feature: Any) -> bool:
    return isinstance(feature, datasets.ClassLabel) or str(getattr(feature, "dtype", "")).startswith(("int", "uint"))
