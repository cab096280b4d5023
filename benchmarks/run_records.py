"""Records of runs in a JSON file, with a table beside it. An interrupted benchmark continues from this file."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from hf_vq.utils.files import write_text


def load_records(path: Path) -> list[dict[str, Any]]:
    """The records that `save_records` wrote, or an empty list."""
    return json.loads(path.read_text())["records"] if path.exists() else []


def save_records(path: Path, protocol: dict[str, Any], records: list[dict[str, Any]], table: str) -> None:
    """Writes protocol and records to `path`, and the table to a Markdown file beside it."""
    content = {"protocol": {**protocol, "torch": torch.__version__}, "records": records}
    write_text(json.dumps(content, indent=1) + "\n", path)
    write_text(table, path.with_suffix(".md"))


def holds(records: list[dict[str, Any]], key: dict[str, Any]) -> bool:
    """Whether the records contain the run that the key names."""
    return any(key.items() <= record.items() for record in records)


def row_settings(row: Any) -> dict[str, Any]:
    """The fields of a table's row, for a protocol. Another library's layer is known by its name alone."""
    quantizer = row.quantizer if isinstance(row.quantizer, dict) else "the row's name tells it"
    return {**dataclasses.asdict(row), "quantizer": quantizer}


def mean_deviation(values: list[float], digits: int) -> str:
    """The mean as text, with the sample deviation if there are several values."""
    text = f"{statistics.mean(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):,.{digits}f}"
