"""Times of tasks that take turns in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

Name = TypeVar("Name")


def timed_rounds(tasks: Mapping[Name, Callable[[], object]], rounds: int, device: str) -> dict[Name, list[float]]:
    """Milliseconds of each task in each round. Every other round runs the tasks in the opposite order."""
    times: dict[Name, list[float]] = {name: [] for name in tasks}
    for round_number in range(rounds + 1):  # the first round warms up
        for name in list(tasks) if round_number % 2 else reversed(list(tasks)):
            start = time.perf_counter()
            tasks[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_number:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times faster ours is, as the median over the rounds. One disturbed round does not change it."""
    return statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
