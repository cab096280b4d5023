"""The page on training shows code that runs, and names files that a run writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .pages import Page

PAGE = Page("training.md")


def test_the_code_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer from Python writes what the table promises."""
    monkeypatch.chdir(tmp_path)
    (block,) = PAGE.code()

    PAGE.assert_prints(block)

    cells = " ".join(row for row in PAGE.rows if row.startswith("`"))
    names = [name.rstrip("/").replace("-N", "-60") for name in re.findall(r"`([^`]+)`", cells)]
    assert len(names) == 6
    missing = [name for name in names if not (tmp_path / "out" / name).exists()]
    assert missing == ["data_split.json"]  # these images were held out by whoever made the data sets
