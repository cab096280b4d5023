"""Runs a benchmark inside the test's process, on little data, with its results in a temporary folder."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class Benchmark:
    """A benchmark's module, and its main function with a command line."""

    def __init__(self, module: ModuleType, results: Path, monkeypatch: pytest.MonkeyPatch):
        self.module, self.results, self.monkeypatch = module, results, monkeypatch

    def __call__(self, *words: str) -> None:
        self.monkeypatch.setattr(sys, "argv", [f"{self.module.__name__}.py", *words])
        self.module.main()

    def written(self, name: str) -> dict[str, Any]:
        return json.loads((self.results / f"{name}.json").read_text())

    def lines(self, name: str) -> dict[str, list[str]]:
        """The cells of each line of the table, by the first."""
        text = (self.results / f"{name}.md").read_text()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
        return {row[0]: row[1:] for row in rows}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Benchmark]:
    def load(name: str) -> Benchmark:
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "RESULTS", tmp_path)
        return Benchmark(module, tmp_path, monkeypatch)

    return load
