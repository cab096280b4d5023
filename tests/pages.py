"""Pages of docs/ that are tested: their tables row by row, and their code."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"


class Page:
    """A page whose tables' rows each have a case, or say that they are not tested and why."""

    def __init__(self, name: str) -> None:
        self.text = (DOCS / name).read_text(encoding="utf-8")
        lines = [line for line in self.text.splitlines() if line.startswith("| ")]
        cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        self.rows = {row[0]: row[1:] for row in cells if row[1:] and not row[-1].startswith("what differs")}
        self.cases: dict[str, Callable[[], None]] = {}

    def row(self, *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Says that a function proves the rows that begin with these cells; it may take the row's name."""

        def add(case: Callable[..., None]) -> Callable[..., None]:
            takes_name = case.__code__.co_argcount
            for name in names:
                assert name not in self.cases, name
                self.cases[name] = partial(case, name) if takes_name else case
            return case

        return add

    def assert_complete(self) -> None:
        """Each row has a case or says why not, and each case has a row."""
        untested = {name for name, row in self.rows.items() if "Not tested" in row[-1]}
        assert set(self.rows) - untested == set(self.cases)

    def code(self) -> list[str]:
        """The page's blocks of Python."""
        return re.findall(r"```python\n(.*?)```", self.text, re.DOTALL)

    def assert_prints(self, block: str) -> None:
        """Runs a block; each `print(...)  # text` prints that text."""
        printed = io.StringIO()
        names: dict[str, Any] = {}
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "page", "exec"), names)
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert expected
        for line, pattern in zip(printed.getvalue().splitlines(), expected, strict=True):
            assert fnmatch.fnmatchcase(line, pattern.replace("[", "[[]")), line
