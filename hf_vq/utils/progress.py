"""How far a long piece of work is: a bar in a terminal, and now and then a line in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 60.0

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


def can_draw_bars() -> bool:
    """Whether progress bars can be drawn: on a terminal and in a notebook, but not in a log."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress(total: int | None, *, unit: str, desc: str, silent: bool) -> Any:
    """What shows progress; it is a context, and its `update(count=1)` says that more is done.

    Args:
        total: How much there is to do; None if nobody knows.
        unit: What is counted, in the plural.
        desc: What is being done.
        silent: Whether nothing is to be shown.
    """
    if silent or can_draw_bars():
        return tqdm(total=total, unit=unit, desc=desc, disable=silent)
    return _Lines(total, unit, desc)


def track(items: Iterable[Item], total: int | None, *, unit: str, desc: str, silent: bool) -> Iterator[Item]:
    """Passes items on and shows how many have been used. Arguments as for `progress`."""
    with progress(total, unit=unit, desc=desc, silent=silent) as shown:
        for item in items:
            yield item
            shown.update()


class _Lines:
    """A line a minute; work that takes less time has none."""

    def __init__(self, total: int | None, unit: str, desc: str) -> None:
        self.of = "" if total is None else f" of {total:,}"
        self.unit, self.desc = unit, desc
        self.done, self.told = 0, time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.told >= SECONDS_BETWEEN_LINES:
            self.told = now
            logger.info("%s: %s%s %s", self.desc, f"{self.done:,}", self.of, self.unit)
