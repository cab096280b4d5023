"""Held-out error and codebook use of each method, in one autoencoder with one budget (see autoencoder.py).

    make bench-quality
    python benchmarks/quality.py --tune
    python benchmarks/quality.py --rows "no quantization" --data photographs --seeds 0 1 2

All rows share network, batches, optimizer and steps. They differ in the quantizer, the weight of its loss and the
dimension of the codes (1 x 1 convolutions lead to it and back). `--tune` tries equally many candidates for every
method (quality_candidates.py), with a third of the steps, on photographs that the tables do not measure. The best
candidate of each enters the tables. A row that results/quality_DATA.json already holds for these steps is not run
again; `--fresh` runs everything again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Container, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import autoencoder
import torch
from quality_candidates import CANDIDATES, FIXED, Row
from run_records import holds, load_records, mean_deviation, row_settings, save_records

from hf_vq import no_vq

RESULTS = Path(__file__).parent / "results"


FLOOR = "no quantization"


def chosen(path: Path, candidates: dict[str, dict[str, Row]]) -> dict[str, Row]:
    """The candidate of each method with the lowest error in the trials at `path`, as name -> row."""
    records = load_records(path)
    best = {}
    for method, rows in candidates.items():
        tried = [record for record in records if record["row"] in rows]
        if len(tried) < len(rows):
            raise SystemExit(f"{path} holds {len(tried)} of {len(rows)} trials of {method}: tune first, see --help")
        name = min(tried, key=lambda record: record["mse"])["row"]
        best[name] = rows[name]
    return best


def run(name: str, row: Row, data: str, seed: int, steps: int, device: str) -> dict[str, Any]:
    """Trains and evaluates one row, and returns its record."""
    train_images, test_images = (split.to(device) for split in autoencoder.DATA[data]())
    model = autoencoder.build(row.quantizer, row.embed_dim, seed, row.num_codes).to(device)  # type: ignore[arg-type]
    with no_vq(model) if name == FLOOR else nullcontext():
        clock = autoencoder.train(model, train_images, commitment_weight=row.commitment_weight, steps=steps, seed=seed)
        metrics = autoencoder.evaluate(model, test_images, row.num_codes)
        # A code that new images do not need is not lost. A code that even the training images do not use is.
        metrics["train_usage"] = autoencoder.evaluate(model, train_images, row.num_codes)["usage"]
        if row.yardstick:
            if data == "photographs":
                tiles = autoencoder.overlapping().to(device)
                metrics["overlapping_usage"] = autoencoder.evaluate(model, tiles, row.num_codes)["usage"]
            metrics["kmeans_usage"] = autoencoder.kmeans_usage(model, train_images, test_images)
    return {
        "row": name,
        "data": data,
        "seed": seed,
        "steps": steps,
        "device": device,
        **metrics,
        "seconds": clock.seconds,
    }


def table(records: list[dict[str, Any]], names: Iterable[str], title: str, steps: int) -> str:
    """Markdown table of the mean over the seeds, with the deviation where there are several."""
    shown = [record for record in records if record["steps"] == steps]
    usages = {
        "usage": "codes used",
        "overlapping_usage": "by overlapping tiles",
        "train_usage": "by training images",
        "kmeans_usage": "k-means would use",
    }
    usages = {key: text for key, text in usages.items() if any(key in record for record in shown)}
    columns = ["", "MSE x1e-3", "perplexity", *usages.values(), "seeds"]
    lines = [
        f"{title}: {steps} steps of batch 32, 1,024 codes; held-out images, mean ± deviation over the seeds.",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
    ]
    for name in names:
        of_row = [record for record in shown if record["row"] == name]
        if not of_row:
            continue
        cells = [name, mean_deviation([1e3 * r["mse"] for r in of_row], 2)]
        if name == FLOOR:
            cells += [""] * (len(columns) - 3)
        else:
            cells.append(mean_deviation([r["perplexity"] for r in of_row], 0))
            for key in usages:
                seen = [100 * r[key] for r in of_row if key in r]
                cells.append(mean_deviation(seen, 1) + "%" if seen else "")
        cells.append(", ".join(str(r["seed"]) for r in of_row))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def protocol(rows: dict[str, Row], data: str, title: str, steps: int) -> dict[str, Any]:
    """The settings behind the numbers of a file."""
    return {
        "title": title,
        **autoencoder.PROTOCOL,
        "data": autoencoder.SPLITS[data],
        "steps": steps,
        "rows": {name: row_settings(row) for name, row in rows.items()},
    }


def fill(
    path: Path,
    rows: dict[str, Row],
    data: str,
    seeds: list[int],
    title: str,
    steps: int,
    device: str,
    only: Container[str] | None = None,
) -> None:
    """Runs the rows that the file lacks, or those of them in `only`. Writes file and table after every row."""
    records = load_records(path)
    names = dict.fromkeys([*rows, *(record["row"] for record in records)])
    facts = protocol(rows, data, title, steps)
    for seed in seeds:
        for name, row in rows.items():
            key = {"row": name, "data": data, "seed": seed, "steps": steps}
            if (only is not None and name not in only) or holds(records, key):
                continue
            records.append(run(name, row, data, seed, steps, device))
            print(json.dumps(records[-1]), flush=True)
            save_records(path, facts, records, table(records, names, title, steps))
    save_records(path, facts, records, table(records, names, title, steps))
    print(table(records, names, title, steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tune", action="store_true", help="try the candidates of each method instead")
    parser.add_argument("--rows", nargs="*", metavar="ROW", help="run only these rows of the table")
    parser.add_argument("--data", nargs="*", default=["photographs", "emoji"], choices=["photographs", "emoji"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="default: 1500, and 500 with --tune")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fresh", action="store_true", help="delete the results of earlier runs first")
    options = parser.parse_args()
    options.steps = options.steps or (500 if options.tune else 1500)
    RESULTS.mkdir(exist_ok=True)
    paths = {data: RESULTS / f"quality_{data}.json" for data in (["tuning"] if options.tune else options.data)}
    for path in paths.values() if options.fresh else ():
        path.unlink(missing_ok=True)
    if options.tune:
        every = {name: row for candidates in CANDIDATES.values() for name, row in candidates.items()}
        title = "Validation photographs"
        fill(paths["tuning"], every, "validation", options.seeds, title, options.steps, options.device)
        return
    known = chosen(RESULTS / "quality_tuning.json", CANDIDATES) | FIXED
    unknown = sorted(set(options.rows or ()) - set(known))
    if unknown:
        raise SystemExit(f"no row {unknown[0]!r}; there are: " + "; ".join(known))
    for data, path in paths.items():
        fill(path, known, data, options.seeds, data.capitalize(), options.steps, options.device, options.rows)


if __name__ == "__main__":
    main()
