"""Names and lists in messages and cards."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection
from itertools import islice
from pathlib import Path

FINAL_FOLDER = "final"  # of a run's finished model
MAX_NAMES = 10  # how many file names a warning lists
HUB_PREFIX = "hf://"  # before the id of a model, asks the Hub whatever is here
DATA_PREFIX = "hf://datasets/"  # the same for a data set


def shorten(names: Collection[str], limit: int = MAX_NAMES, *, quoted: bool = False) -> str:
    """The first names of a list and how many more there are, for a message.

    Args:
        names: The names.
        limit: How many of them are written out.
        quoted: Whether to put them in quotes.
    """
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(repr(name) if quoted else name for name in islice(names, limit)) + more


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number and what it counts: "1 image", "1,700 images", "2 processes"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def first_line(reason: BaseException) -> str:
    """What an error says, without the lines that follow, for a message of one line."""
    return next(iter(str(reason).strip().splitlines()), "").rstrip(".") or type(reason).__name__


def public_name(name: str | None, *, follow_links: bool = False) -> str | None:
    """The last part of a path, since the rest says where somebody's files are. Other names stay as they are.

    Of the model of a run, `out/final`, it is the run's name. A relative pattern such as "shards/*.parquet" stays as
    well: its last part would name nothing.

    Args:
        name: A path, or the id of a model or a data set on the Hub.
        follow_links: Whether a link counts as what it leads to.
    """
    name = plain_id(name) if name else name
    if not name or is_hub_id(name):
        return name
    path = Path(name).expanduser()
    if glob.has_magic(name) and not path.is_absolute() and not path.exists():
        return name
    path = path.resolve() if follow_links else Path(os.path.abspath(path))
    return path.parent.name if path.name == FINAL_FOLDER and path.parent.name else path.name


def plain_id(name: str) -> str:
    """A name without what says that it is the Hub's."""
    return name.removeprefix(DATA_PREFIX).removeprefix(HUB_PREFIX)


def is_hub_id(name: str | None) -> bool:
    """Whether a name is a repository's, to which the Hub can link, and not a path."""
    part = r"(?![.-])(?![\w.-]*(--|\.\.))[\w.-]{1,96}(?<![.-])"
    return bool(name and re.fullmatch(f"{part}/{part}", name, re.ASCII)) and not Path(str(name)).exists()
