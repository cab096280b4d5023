"""Numbers of a run: averaged over steps and ranks, written to `metrics.jsonl`, and never twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_vq.utils.files import write_text


class LogWindow:
    """Collects the metrics of the steps between two log lines, on the device, so that steps do not wait for numbers.

    Args:
        summed: Names that are added up over the window; all others are averaged.
    """

    def __init__(self, summed: frozenset[str] = frozenset()) -> None:
        self.summed = summed
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.images = 0
        self.seconds = 0.0

    def add(self, values: Mapping[str, Tensor], images: int, seconds: float) -> None:
        """Takes in the metrics of one step, the images that all processes saw in it, and how long it took."""
        for name, value in values.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach().float()
            self.totals[name] = self.totals[name] + value if name in self.totals else value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.images += images
        self.seconds += seconds

    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The window's metrics, averaged over ranks by `reduce`, and images per second of all ranks; empties it."""
        names = sorted(self.totals)
        result: dict[str, float] = {}
        if names:
            scales = [1 if name in self.summed else self.counts[name] for name in names]
            stacked = torch.stack([self.totals[name] / scale for name, scale in zip(names, scales, strict=True)])
            result = dict(zip(names, reduce(stacked).tolist(), strict=True))
        result["images_per_second"] = self.images / max(1e-9, self.seconds)
        self.totals, self.counts = {}, {}
        self.images, self.seconds = 0, 0.0
        return result

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint between two log lines has to keep."""
        return {"totals": {name: total.cpu() for name, total in self.totals.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Goes on with a window that a checkpoint interrupted; its speed counts only what is done from here."""
        self.totals = {name: total.to(device) for name, total in state["totals"].items()}
        self.counts = dict(state["counts"])
        self.images, self.seconds = 0, 0.0


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, with `step`, `split` and the metrics.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Adds a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; one that a kill cut off is left out."""
        if not self.path.exists():
            return []
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return lines

    def truncate(self, step: int) -> None:
        """Drops the lines after `step`, which a run that goes on from there writes again."""
        if not self.path.exists():
            return
        kept = [line for line in self.read() if line["step"] <= step]
        write_text("".join(json.dumps(line) + "\n" for line in kept), self.path)
