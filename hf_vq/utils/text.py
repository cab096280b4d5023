"""Names and lists in messages and cards."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

MAX_NAMES = 10  # how many file names a warning lists


def shorten(names: Sequence[str]) -> str:
    """The first names of a list and how many more there are, for a message."""
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def public_name(name: str | None) -> str | None:
    """Of a path only the last part: the rest says where somebody's files lie."""
    return Path(os.path.abspath(Path(name).expanduser())).name if name and not is_hub_id(name) else name


def is_hub_id(name: str | None) -> bool:
    """Whether a name is a repository's, to which the Hub can link, and not a path."""
    return bool(name and re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(str(name)).exists()


def listed(names: Collection[str], limit: int = 40) -> str:
    """Names in a row, for a message; of many the first `limit` and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + rest
