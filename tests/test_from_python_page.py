"""The page on training from Python shows code that runs, block after block."""

from __future__ import annotations

from pathlib import Path

import pytest

from .pages import Page


def test_the_blocks_print_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, the three trainers, and a loop of one's own."""
    monkeypatch.chdir(tmp_path)
    page = Page("from-python.md")
    blocks = page.code()

    assert len(blocks) == 8
    page.assert_prints("\n".join(blocks))

    assert sorted(path.name for path in tmp_path.glob("*/final")) == ["final"] * 3
