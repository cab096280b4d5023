"""Which part of the method does what: the paper's ablation on data at hand, our recipe's parts, and its knobs.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --part table --data photographs --seeds 0 1 2

Parts, each with its files results/ablation_PART*.{json,md}:

- tuning: ten candidates (ablation_candidates.py) for each row of the paper's table, at half its budget, on
  photographs that the tables do not measure; the best ones serve for both data sets.
- table: base, base with one part, base with all, with 64-d codes as in the paper (Huh et al., ICML 2023).
- leave_one_out: our recipe (4-d codes), without one part at a time.
- knobs: our recipe with one setting changed, on the validation photographs.

Network, batches and optimizer are those of quality.py (see autoencoder.py). What a file already holds is not run
again.
"""

from __future__ import annotations

import argparse

import torch
from ablation_candidates import KNOBS, LEAVE_ONE_OUT, PAPER
from quality import RESULTS, chosen, fill

STEPS = {"tuning": 150, "table": 300, "leave_one_out": 500, "knobs": 500}
TUNING = RESULTS / "ablation_tuning.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", nargs="*", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--data", nargs="*", default=["photographs", "emoji"], choices=["photographs", "emoji"])
    parser.add_argument("--rows", nargs="*", metavar="ROW", help="by their names in the tables; all by default")
    parser.add_argument("--seeds", nargs="*", type=int, help="0 1 2; 0 for tuning and knobs")
    parser.add_argument("--steps", type=int, help=", ".join(f"{steps} for {part}" for part, steps in STEPS.items()))
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


if __name__ == "__main__":
    main()
