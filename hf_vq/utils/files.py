"""Files and folders that are either complete or not there: written aside, flushed, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary sibling of `path` to write into, which takes its name only once everything is on the disk.

    Whatever stops the writing leaves `path` as it was. A process killed in between leaves a folder whose name starts
    with `.tmp-`; see `remove_stale_folders`.

    Args:
        path: The folder to create or to replace.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}"
    discard(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        flush_tree(temporary)
        if path.exists():
            replaced = path.parent / f"{TEMPORARY_PREFIX}replaced-{path.name}"
            discard(replaced)
            os.replace(path, replaced)
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(replaced, path)
                raise
            discard(replaced)
        else:
            os.replace(temporary, path)
        flush(path.parent)
    except BaseException:
        discard(temporary)
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Gives a temporary sibling of `path` to write, which replaces `path` once everything is on the disk.

    Whatever stops the writing leaves `path` as it was. The sibling's name is new each time, since processes that
    outlived their killed launcher may still write the same file. It begins with `.tmp-` and ends like `path`.

    Args:
        path: The file to create or to replace.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{path.name}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(text: str, path: Path) -> None:
    """Writes a text file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(value: Any, path: Path) -> None:
    """Writes indented JSON, whole or not at all."""
    write_text(json.dumps(value, indent=2) + "\n", path)


def discard_leftovers(folder: Path) -> None:
    """Removes what processes that were killed amid their writing have left in a folder."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        discard(leftover)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in a sentence what a full disk did to a file, or a folder that cannot be written to.

    Raises:
        OSError: What is written inside cannot be written.
    """
    try:
        yield
    except OSError as reason:
        raise OSError(
            f"Could not write '{path}': {reason}. {free_space(path.parent)}. Free some space, or make the folder "
            "writable, and give the same command again: it goes on from what is there."
        ) from reason


def free_space(folder: Path) -> str:
    """What the disk under a folder has left, in words."""
    return f"The disk has {shutil.disk_usage(folder).free / 2**20:,.1f} MiB left"


def discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            flush(Path(parent, name))
        flush(Path(parent))


def flush(path: Path) -> None:
    """Makes the system write a file or a folder's list of names to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
