"""Which part of the method does what: the paper's ablation on our data, then the parts and settings of our recipe.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --part table --data photographs --seeds 0 1 2

There are four parts. Each writes its own files, results/ablation_PART*.{json,md}:

- tuning: tries ten candidates (ablation_candidates.py) for each row of the paper's table. It uses half the table's
  budget and photographs that the tables do not measure. Both data sets then use the best candidates.
- table: the base, the base with one part, and the base with all parts. Codes have 64 dimensions as in the paper
  (Huh et al., ICML 2023).
- leave_one_out: our recipe (4-d codes) without one part at a time.
- knobs: our recipe with one setting changed at a time, on the validation photographs.

results/ablation.png and results/ablation_knobs.png show the results of the last three parts so far. Network, batches
and optimizer are those of quality.py (see autoencoder.py). A run that a file already holds is not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch
from ablation_candidates import FULL_METHOD, KNOBS, LEAVE_ONE_OUT, PAPER
from dot_plot import Panel, dot_plot
from quality import RESULTS, chosen, fill
from run_records import load_records

STEPS = {"tuning": 150, "table": 300, "leave_one_out": 500, "knobs": 500}
TUNING = RESULTS / "ablation_tuning.json"


def parts_panels(records: list[dict[str, Any]], rows: Iterable[str], title: str, strong: str) -> list[Panel]:
    """Panels of the error and of the use of the codes. Rows are named without the settings that won."""
    of_rows = _by_row(records, rows)
    return [
        Panel(f"MSE x1e-3, {title}", _values(of_rows, "mse", 1e3), strong, [strong]),
        Panel("codes used by held-out images, %", _values(of_rows, "usage", 100), strong, [strong]),
    ]


def knob_panels(records: list[dict[str, Any]]) -> list[Panel]:
    """Panels of the error, as the difference from the full method of the same seed, and of the use of the codes."""
    full = {record["seed"]: record["mse"] for record in records if record["row"] == FULL_METHOD}
    lead = [{**record, "mse": record["mse"] - full[record["seed"]]} for record in records if record["seed"] in full]
    of_rows = _by_row(lead, KNOBS)
    return [
        Panel(
            "MSE x1e-3, less the full method's of that seed", _values(of_rows, "mse", 1e3), FULL_METHOD, [FULL_METHOD]
        ),
        Panel("codes used by held-out images, %", _values(of_rows, "usage", 100), FULL_METHOD, [FULL_METHOD]),
    ]


def _by_row(records: list[dict[str, Any]], rows: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    found = {row: [record for record in records if record["row"].split(":")[0] == row] for row in rows}
    return {row: runs for row, runs in found.items() if runs}


def _values(of_rows: dict[str, list[dict[str, Any]]], key: str, scale: float) -> dict[str, list[float]]:
    return {row: [scale * run[key] for run in runs] for row, runs in of_rows.items()}


def draw(steps: dict[str, int]) -> None:
    """Draws the runs with these steps that the files hold."""

    def found(name: str, part: str) -> list[dict[str, Any]]:
        return [record for record in load_records(RESULTS / f"{name}.json") if record["steps"] == steps[part]]

    grid = []
    for data in ("photographs", "emoji"):
        if table := found(f"ablation_table_{data}", "table"):
            grid.append(parts_panels(table, PAPER, f"{data}, 64-d codes", "all"))
        if without := found(f"ablation_leave_one_out_{data}", "leave_one_out"):
            grid.append(parts_panels(without, LEAVE_ONE_OUT, f"{data}, 4-d codes", FULL_METHOD))
    if grid:
        dot_plot(grid).save(RESULTS / "ablation.png")
    knobs = found("ablation_knobs", "knobs")
    if any(record["row"] == FULL_METHOD for record in knobs):
        dot_plot([knob_panels(knobs)]).save(RESULTS / "ablation_knobs.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", nargs="*", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--data", nargs="*", default=["photographs", "emoji"], choices=["photographs", "emoji"])
    parser.add_argument("--rows", nargs="*", metavar="ROW", help="run only these rows of the tables")
    parser.add_argument("--seeds", nargs="*", type=int, help="default: 0 1 2, but only 0 for tuning and knobs")
    parser.add_argument(
        "--steps", type=int, help="default: " + ", ".join(f"{steps} for {part}" for part, steps in STEPS.items())
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    steps = {part: options.steps or steps for part, steps in STEPS.items()}
    several, one = options.seeds or [0, 1, 2], options.seeds or [0]
    tuned = f"the best of ten candidates ({STEPS['tuning']} steps, validation photographs)"
    if "tuning" in options.part:
        every = {name: row for candidates in PAPER.values() for name, row in candidates.items()}
        title = "`ablation.py --part tuning`: 64-d codes, validation photographs"
        fill(TUNING, every, "validation", one, title, steps["tuning"], options.device, options.rows)
    for data in options.data:
        if "table" in options.part:
            path = RESULTS / f"ablation_table_{data}.json"
            title = f"`ablation.py --part table --data {data}`: 64-d codes, each row {tuned}"
            fill(path, chosen(TUNING, PAPER), data, several, title, steps["table"], options.device, options.rows)
        if "leave_one_out" in options.part:
            path = RESULTS / f"ablation_leave_one_out_{data}.json"
            title = f"`ablation.py --part leave_one_out --data {data}`: 4-d codes, nothing tuned anew"
            fill(path, LEAVE_ONE_OUT, data, several, title, steps["leave_one_out"], options.device, options.rows)
    if "knobs" in options.part:
        path = RESULTS / "ablation_knobs.json"
        title = "`ablation.py --part knobs`: 4-d codes unless said, one setting changed, validation photographs"
        fill(path, KNOBS, "validation", one, title, steps["knobs"], options.device, options.rows)
    draw(steps)


if __name__ == "__main__":
    main()
