"""The folder of a token data set while it is written: whose it is, what is there already, and when it is whole."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_vq.data.manifest import DamagedShardError, verify_shard
from hf_vq.data.reading import unreadable, with_reasons
from hf_vq.data.shards import read_shard_info
from hf_vq.data.tokens import MANIFEST_FILE, Manifest, read_manifest
from hf_vq.utils.files import discard_leftovers, write_json, writing
from hf_vq.utils.hashes import file_sha256, json_sha256
from hf_vq.utils.locks import FolderLock, FolderLockedError
from hf_vq.utils.processes import on_main_process
from hf_vq.utils.settings import differences
from hf_vq.utils.text import counted, first_line, shorten

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger(__name__)

ROWS_KEY = "rows_of_parts"  # of a split that is not finished: rows of each file of its stream, where they were counted


@contextmanager
def locked(folder: Path, state: PartialState) -> Iterator[None]:
    """Makes the folder where it is missing, and keeps other runs out of it; a collective.

    Raises:
        FileExistsError: Another run works in the folder.
        OSError: The folder can be neither made nor written to.
    """
    lock = FolderLock(folder)
    made: list[Path] = []

    def take() -> None:
        try:
            made.extend([] if folder.exists() else [folder])
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except FolderLockedError as owner:
            raise FileExistsError(
                f"'{folder}' is in use: {owner}. Wait until that run has ended, or choose another output_dir."
            ) from None
        except (OSError, ValueError) as reason:  # ValueError: a null byte in the name
            raise OSError(
                f"'{folder}' cannot be the folder of a token data set: {reason}. Choose another output_dir."
            ) from reason

    on_main_process(take, state)
    try:
        yield
    finally:
        lock.release()
        for path in made:
            with suppress(OSError):  # only an empty one can be removed: the run wrote nothing
                path.rmdir()


def begin(folder: Path, settings: Manifest, split: str, num_images: int | None) -> None:
    """Writes the manifest, or notes in it that a split is begun. One with other settings stays as it is."""
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        manifest = settings | {"splits": {}}
    if split not in manifest["splits"]:
        manifest["splits"] = dict(sorted({**manifest["splits"], split: {"num_images": num_images}}.items()))
        if not differences(_without_splits(manifest), settings):
            _write(manifest, folder)


def go_on(folder: Path, settings: Manifest, split: str, num_images: int | None, strict: bool) -> dict[str, Any]:
    """What the manifest says about a split, if all that is there was made with the same settings."""
    manifest = read_manifest(folder)
    there, here = _without_splits(manifest), settings
    record = manifest["splits"].get(split, {})
    if None not in (num_images, record.get("num_images")):
        there, here = there | {"num_images": record["num_images"]}, here | {"num_images": num_images}
    changes = differences(there, here)
    if changes:
        lines = "\n  ".join(changes)
        raise ValueError(
            f"'{folder}' was begun with other settings:\n  {lines}\nGo on with the same ones, or choose another "
            "output_dir"
        )
    digest = json_sha256(settings)
    infos = {file.name: read_shard_info(file) for file in sorted(folder.glob(f"{split}-[0-9]*.parquet"))}
    foreign = [name for name, info in infos.items() if info.settings != digest]
    if foreign:
        raise ValueError(f"'{folder}' holds files that were not made with these settings: {shorten(foreign)}")
    skipped = {key: reason for info in infos.values() for key, reason in info.skipped.items()}
    if skipped and strict:
        raise unreadable(skipped)
    return record


def note_rows(folder: Path, split: str, rows: list[int] | None) -> None:
    """Writes down how many rows each part of a split's stream has, so that a restart need not count them again."""
    manifest = read_manifest(folder)
    manifest["splits"][split] |= {"num_images": sum(rows or []), ROWS_KEY: rows}
    _write(manifest, folder)


def missing_files(folder: Path, record: dict[str, Any]) -> list[str]:
    """The files of a finished split that are not there."""
    return [shard["file"] for shard in record["shards"] if not (folder / shard["file"]).is_file()]


def missing_shards(folder: Path, split: str, count: int) -> list[int]:
    """The numbers of the shards that are still to be written, of `count`."""
    return [number for number in range(count) if not shard_path(folder, split, number).exists()]


def set_damaged_shards_aside(folder: Path, settings: Manifest, split: str) -> None:
    """Renames shards that are not what was written, so that they are written again; each is named in a warning."""
    manifest = read_manifest(folder)
    if differences(_without_splits(manifest), settings):
        return  # the run is about to be refused
    recorded = {shard["file"]: shard for shard in manifest["splits"].get(split, {}).get("shards", [])}
    for path in sorted(folder.glob(f"{split}-[0-9]*.parquet")):
        try:
            info = read_shard_info(path)
            if info.settings == json_sha256(settings):
                verify_shard(path, recorded.get(path.name, {"num_rows": info.num_rows}), manifest["image_tokens"])
        except DamagedShardError as problem:
            aside = path.with_name(f"damaged-{path.name}")
            with writing(aside):
                os.replace(path, aside)
            logger.warning("%s. It is written again; the damaged file is now '%s'.", first_line(problem), aside.name)


def finish(folder: Path, split: str, num_shards: int) -> None:
    """Writes what the shards of a split hold into the manifest."""
    files = [shard_path(folder, split, number) for number in range(num_shards)]
    infos = [read_shard_info(file) for file in files]
    num_images, num_rows = sum(info.num_images for info in infos), sum(info.num_rows for info in infos)
    skipped = {key: reason for info in infos for key, reason in info.skipped.items()}
    if not num_rows:
        raise unreadable(skipped) if skipped else ValueError(f"no images found: the split {split!r} is empty")
    discard_leftovers(folder)
    manifest = read_manifest(folder)
    manifest["splits"][split] = {
        "num_images": num_images,
        "num_rows": num_rows,
        "num_skipped": len(skipped),
        "skipped": skipped,
        "shards": [
            {"file": file.name, "num_rows": info.num_rows, "sha256": file_sha256(file)}
            for file, info in zip(files, infos, strict=True)
        ],
    }
    _write(manifest, folder)
    found = counted(num_rows, "row"), counted(num_images, "image"), counted(num_shards, "file")
    logger.info("%s: %s of %s in %s", split, *found)
    if skipped:
        logger.warning(
            "%s: skipped %d of %d images that cannot be read: %s",
            split,
            len(skipped),
            num_images,
            with_reasons(skipped),
        )


def _without_splits(manifest: Manifest) -> Manifest:
    return {name: value for name, value in manifest.items() if name != "splits"}


def _write(manifest: Manifest, folder: Path) -> None:
    with writing(folder / MANIFEST_FILE):
        write_json(manifest, folder / MANIFEST_FILE)


def shard_path(folder: Path, split: str, number: int) -> Path:
    """The file of a shard of a split."""
    return folder / f"{split}-{number:05d}.parquet"
