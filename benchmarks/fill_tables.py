"""Copies the tables of benchmarks/results into docs/results.md, between `<!-- table: name -->` and `<!-- end -->`.

python benchmarks/fill_tables.py
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "benchmarks" / "results"
TABLE = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str) -> str:
    """The text with every table replaced by its current content."""

    def table(match: re.Match[str]) -> str:
        rows = (RESULTS / f"{match[1]}.md").read_text(encoding="utf-8").strip()
        return f"<!-- table: {match[1]} -->\n{rows}\n<!-- end -->"

    return TABLE.sub(table, text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
