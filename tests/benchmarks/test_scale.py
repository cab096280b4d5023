"""The benchmark of large runs: a ratio is that of rounds side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest


def test_the_ratio_is_that_of_rounds_beside_each_other(benchmark: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets slower slows both, and one slow round does not decide."""
    module = benchmark("scale").module
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def task(seconds: list[float]) -> Callable[[], Iterator[None]]:
        def steps() -> Iterator[None]:
            for each in seconds:
                clock[0] += each
                yield

        return steps

    tasks = {"trainer": task([9, 2, 4, 60]), "bare loop": task([1, 1, 2, 10]), "reading alone": task([5, 1, 1, 1])}
    found = module.timed(tasks, steps=1, rounds=3, warm_up=1)

    assert found == {"trainer": 4000, "bare loop": 2000, "reading alone": 1000, "ratio": 2}
