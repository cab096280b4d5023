"""The benchmark of the commitment loss's weight: its runs, its table, and how it goes on."""

from collections.abc import Callable


def test_each_run_has_its_line_and_is_not_repeated(benchmark: Callable) -> None:
    """Two steps each; a second call adds a seed."""
    command = benchmark("commitment_weight")
    command("--steps", "2", "--alphas", "0", "3", "--code_dims", "8", "--seeds", "0")
    command("--steps", "2", "--alphas", "3", "--code_dims", "8", "--seeds", "0", "1")

    records = command.written("commitment_weight")["records"]
    assert [(record["alpha"], record["seed"]) for record in records] == [(0, 0), (3, 0), (3, 1)]
    assert all(0 < record["mse"] < 1 and 0 < record["usage"] <= 1 for record in records)
    lines = command.lines("commitment_weight")
    assert lines["0"][0] == "8" and lines["0"][-1] == "0" and lines["3"][-1] == "0, 1"
