"""docs/tokenizers.md names what can be converted and what is refused, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from hf_vq.convert.layouts import LAYOUTS
from hf_vq.convert.refusals import _BY_NAME

PAGE = (Path(__file__).parents[1] / "docs" / "tokenizers.md").read_text()


def test_the_table_has_all_layouts() -> None:
    """In the column of layouts, each at least once, and their projects."""
    layouts = set(re.findall(r"\| `(\w+)` \|", PAGE))

    assert layouts == set(LAYOUTS)
    for layout in LAYOUTS.values():
        assert f"({layout.project})" in PAGE


def test_tables_have_whole_rows() -> None:
    """As many cells in each row as in the one above it, and no row outside of a table."""
    lines = ["", *PAGE.splitlines()]
    for above, line in zip(lines[:-1], lines[1:], strict=True):
        if line.startswith("|") and above.startswith("|"):
            assert line.count("|") == above.count("|"), line
        elif line.startswith("|"):
            assert re.match(r"\| (project|tokenizer) \|", line), line


def test_the_table_has_all_refusals() -> None:
    """By the words that a message begins with."""
    refused = PAGE.split("## What is refused")[1]
    for _, project, _ in _BY_NAME:
        assert project.split(" (")[0].split(" or ")[0].removeprefix("a ").split(",")[0] in refused, project
