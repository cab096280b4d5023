"""Records of runs: a JSON file with their protocol, from which a cut benchmark goes on, and a table beside it."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from hf_vq.utils.files import write_text


def load_records(path: Path) -> list[dict[str, Any]]:
    """The records that `save_records` wrote, or none."""
    return json.loads(path.read_text())["records"] if path.exists() else []


def save_records(path: Path, protocol: dict[str, Any], records: list[dict[str, Any]], table: str) -> None:
    """Writes protocol and records to `path`, and the table to the Markdown file beside it."""
    content = {"protocol": {**protocol, "torch": torch.__version__}, "records": records}
    write_text(json.dumps(content, indent=1) + "\n", path)
    write_text(table, path.with_suffix(".md"))


def holds(records: list[dict[str, Any]], key: dict[str, Any]) -> bool:
    """Whether the run that the key names is there."""
    return any(key.items() <= record.items() for record in records)


def row_settings(row: Any) -> dict[str, Any]:
    """The fields of a row of a table, for a protocol; of a foreign layer only the name is known."""
    quantizer = row.quantizer if isinstance(row.quantizer, dict) else "the row's name tells it"
    return {**dataclasses.asdict(row), "quantizer": quantizer}


def mean_deviation(values: list[float], digits: int) -> str:
    """Mean, and sample deviation where there are several values."""
    text = f"{statistics.mean(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):,.{digits}f}"
