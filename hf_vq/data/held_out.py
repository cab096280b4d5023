"""Which images of a data set a run held out: drawn by its seed, written down, and found again by anyone."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute

from hf_vq.data.shards import path_key
from hf_vq.hub.folders import SPLIT_FILE
from hf_vq.utils.files import write_json
from hf_vq.utils.hashes import json_sha256
from hf_vq.utils.text import public_name

HELD_OUT = "held-out"
"""What the held-out images of a run are called where the name of a split is asked for."""


@dataclass(frozen=True)
class HeldOut:
    """What says which rows of a split were held out.

    Attributes:
        dataset: Name of the data set, of a path the last part.
        split: The split that was parted.
        num_rows: Its rows.
        num_held_out: How many of them were held out.
        seed: What drew them.
        sha256: Hash of the names of all rows in their order; None where rows have no names.
        names: The names of those held out. Only in the folder of the run: a file's name may be nobody's business.
        tokens: Whether the rows were those images that have tokens, and their names the keys of a token data set.
    """

    dataset: str
    split: str
    num_rows: int
    num_held_out: int
    seed: int
    sha256: str | None = None
    names: list[str] | None = None
    tokens: bool | None = None

    def write(self, folder: Path, *, names: bool = False) -> None:
        """Writes it into a folder, with or without the names."""
        shown = self if names else dataclasses.replace(self, names=None)
        write_json({key: value for key, value in vars(shown).items() if value is not None}, folder / SPLIT_FILE)


def read_held_out(file: Path) -> HeldOut:
    """Reads what `HeldOut.write` wrote.

    Raises:
        ValueError: It holds something else.
    """
    try:
        return HeldOut(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as reason:
        raise ValueError(f"'{file}' does not say which images were held out: {reason}") from reason


def hold_out(
    images: datasets.Dataset, dataset: str, split: str, fraction: float, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset, HeldOut]:
    """Parts a data set of at least two rows into training and held-out ones, the same ones for the same seed.

    Args:
        images: What `load_images` returned.
        dataset: Its name, as given to `load_images`.
        split: Its split.
        fraction: The part to hold out; at least one row.
        seed: Draws it.

    Returns:
        Training rows, held-out rows, and what says which these are.
    """
    count = max(1, round(fraction * len(images)))
    rows = _draw(len(images), count, seed)
    found = row_names(images, dataset)
    record = HeldOut(
        public_name(dataset) or dataset,
        split,
        len(images),
        count,
        seed,
        None if found is None else json_sha256(found),
        None if found is None else [found[row] for row in rows["test"]],
    )
    return images.select(rows["train"]), images.select(rows["test"]), record


def find_held_out(images: datasets.Dataset, dataset: str, record: HeldOut) -> datasets.Dataset:
    """The rows that a run held out.

    Args:
        images: The split that was parted, as `load_images` returns it now.
        dataset: Its name, as given to `load_images`.
        record: What says which rows.

    Raises:
        ValueError: These are not the images of the run, or not all of the held-out ones are there.
    """
    names = _image_keys(images, dataset) if record.tokens else row_names(images, dataset)
    if record.names is not None and names is not None:  # also if images were added since
        rows = {name: row for row, name in enumerate(names)}
        missing = [name for name in record.names if name not in rows]
        if not missing:
            return images.select([rows[name] for name in record.names])
        raise ValueError(
            f"{len(missing)} of the {record.num_held_out} images that the run held out are not in '{dataset}', "
            f"{missing[0]} for one."
        )
    same = len(images) == record.num_rows and (
        record.dataset == public_name(dataset)
        if record.sha256 is None or names is None
        else json_sha256(names) == record.sha256
    )
    if not same:
        raise ValueError(
            f"'{dataset}' does not hold the images of the run any more, so nobody can tell which it held out: it "
            f"drew {record.num_held_out} of the {record.num_rows} images in '{record.dataset}', and here are "
            f"{len(images)}, or others."
        )
    if record.tokens:
        return images.select(draw_tokenized(record.num_rows, record.num_held_out, record.seed)[0])
    return images.select(_draw(record.num_rows, record.num_held_out, record.seed)["test"])


def draw_tokenized(num_images: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers, ascending, of the tokenized images that a generator's run holds out, and of those that train."""
    order = np.random.default_rng(seed).permutation(num_images)
    return np.sort(order[:count]), np.sort(order[count:])


def row_names(images: datasets.Dataset, dataset: str) -> list[str] | None:
    """The file names of all rows, below the data set's folder; None if some have none. No image is read for them."""
    paths = _paths(images)
    if paths is None or not all(paths):
        return None
    folder = f"{Path(dataset).expanduser()}{os.sep}"
    return [str(path).removeprefix(folder) for path in paths]


def _image_keys(images: datasets.Dataset, dataset: str) -> list[str]:
    """The keys that all rows have in a token data set."""
    root, paths = Path(dataset).expanduser(), _paths(images) or [None] * len(images)
    return [path_key(path, number, root) for number, path in enumerate(paths)]


def _paths(images: datasets.Dataset) -> list[str | None] | None:
    """The paths of all rows as they are stored; None where rows have none."""
    if images._indices is not None:
        return None
    column = images.data.column("image")
    if not pa.types.is_struct(column.type) or column.type.get_field_index("path") < 0:
        return None
    return pa.compute.struct_field(column, "path").to_pylist()


def _draw(num_rows: int, count: int, seed: int) -> dict[str, Any]:
    """The numbers of the rows for training and of those held out, in the order of `train_test_split`."""
    parts = datasets.Dataset.from_dict({"row": range(num_rows)}).train_test_split(count, seed=seed)
    return {name: part["row"][:] for name, part in parts.items()}
