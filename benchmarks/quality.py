"""Held-out error and codebook use of each method, in one autoencoder with one budget (see autoencoder.py).

    make bench-quality
    python benchmarks/quality.py --rows "full method" --data photographs --seeds 0 1 2

Every row has the same network, batches, optimizer and steps; what differs is the quantizer, the weight of its loss and
the dimension of the codes (1 x 1 convolutions lead to it and back). A row that results/quality_DATA.json already holds
for these steps is not run again; `--fresh` runs all.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import autoencoder
import torch
from torch import nn

from hf_vq import RECOMMENDED_QUANTIZER, no_vq

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """A line of the table: arguments of `VectorQuant`, or a function from the code dimension to a foreign layer."""

    quantizer: dict[str, Any] | Callable[[int], nn.Module]
    commitment_weight: float
    embed_dim: int = 64
    num_codes: int = autoencoder.NUM_CODES
    quantize: bool = True


def ema(rotation_trick: bool = False) -> Callable[[int], nn.Module]:
    def make(dim: int) -> nn.Module:
        from vector_quantize_pytorch import VectorQuantize

        return VectorQuantize(
            dim=dim,
            codebook_size=autoencoder.NUM_CODES,
            kmeans_init=True,
            threshold_ema_dead_code=2,
            rotation_trick=rotation_trick,
            commitment_weight=0.25,
        )

    return make


def sim_vq(dim: int) -> nn.Module:
    from vector_quantize_pytorch import SimVQ

    return SimVQ(dim=dim, codebook_size=autoencoder.NUM_CODES)


def fsq(dim: int) -> nn.Module:
    from vector_quantize_pytorch import FSQ

    return FSQ(dim=dim, levels=[8, 5, 5, 5])


PLAIN: dict[str, Any] = {"beta": 0.95}
PARTS: dict[str, Any] = {"affine_lr": 2.0, "sync_nu": 0.2, "replace_freq": 20}
INNER: dict[str, Any] = {"beta": 1.0, "alternating_steps": 1}
ROWS: dict[str, Row] = {
    "full method, 4-dimensional codes": Row(RECOMMENDED_QUANTIZER, 1.0, 4),
    "full method, 8-dimensional codes": Row(RECOMMENDED_QUANTIZER, 1.0, 8),
    "full method, 64-dimensional codes": Row(RECOMMENDED_QUANTIZER, 1.0),
    "FSQ [8, 5, 5, 5] (vector-quantize-pytorch)": Row(fsq, 1.0, num_codes=1000),
    "EMA, 4-dimensional codes (the same)": Row(ema(), 1.0, 4),
    "EMA, 64-dimensional codes (the same)": Row(ema(), 1.0),
    "rotation trick, 4-dimensional codes (the same)": Row(ema(rotation_trick=True), 1.0, 4),
    "rotation trick, 64-dimensional codes (the same)": Row(ema(rotation_trick=True), 1.0),
    "SimVQ, 64-dimensional codes (the same)": Row(sim_vq, 1.0),
    "plain VQ": Row(PLAIN, 10.0),
    "plain + affine": Row({**PLAIN, "affine_lr": 2.0}, 2.0),
    "plain + synchronized": Row({**PLAIN, "sync_nu": 0.2}, 10.0),
    "plain + replacement": Row({**PLAIN, "replace_freq": 20}, 10.0),
    "plain + alternating, centroid": Row({**INNER, "alternating_kind": "centroid"}, 0.0),
    "plain + alternating, SGD": Row({**INNER, "alternating_kind": "sgd"}, 0.0),
    "affine + synchronized + replacement": Row({**PLAIN, **PARTS}, 2.0),
    "all of these, centroid, with k-means init": Row({**INNER, **PARTS, "kmeans_init": True}, 0.0),
    "full method with SGD steps, 4-dimensional codes": Row(
        {**RECOMMENDED_QUANTIZER, "alternating_kind": "sgd"}, 1.0, 4
    ),
    "plain VQ, 4-dimensional codes": Row(PLAIN, 10.0, 4),
    "no quantization": Row(PLAIN, 0.0, quantize=False),
}


def run(name: str, data: str, seed: int, steps: int, device: str) -> dict[str, Any]:
    """Trains and evaluates one row; returns its record."""
    row = ROWS[name]
    train_images, test_images = (split.to(device) for split in autoencoder.DATA[data]())
    model = autoencoder.build(row.quantizer, row.embed_dim, seed).to(device)  # type: ignore[arg-type]
    with nullcontext() if row.quantize else no_vq(model):
        seconds = autoencoder.train(
            model, train_images, commitment_weight=row.commitment_weight, steps=steps, seed=seed
        )
        metrics = autoencoder.evaluate(model, test_images, row.num_codes)
    return {"row": name, "data": data, "seed": seed, "steps": steps, "device": device, **metrics, "seconds": seconds}


def table(records: list[dict[str, Any]], data: str, steps: int) -> str:
    """Markdown: mean over the seeds (and deviation, where there are several)."""
    lines = [
        f"{data.capitalize()}: {steps} steps of batch 32, 1,024 codes; held-out images.",
        "",
        "| | MSE x1e-3 | perplexity | codes used | seeds |",
        "|---|---|---|---|---|",
    ]
    for name, row in ROWS.items():
        runs = [record for record in records if record["row"] == name and record["steps"] == steps]
        if runs:
            cells = [name, _mean([1e3 * r["mse"] for r in runs], 2)]
            if row.quantize:
                cells += [_mean([r["perplexity"] for r in runs], 0), _mean([100 * r["usage"] for r in runs], 1) + "%"]
            else:
                cells += ["", ""]
            lines.append("| " + " | ".join([*cells, str(len(runs))]) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--data", nargs="*", default=["photographs", "emoji"], choices=list(autoencoder.DATA))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fresh", action="store_true", help="forget the results of earlier runs")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for data in options.data:
        path = RESULTS / f"quality_{data}.json"
        if options.fresh:
            path.unlink(missing_ok=True)
        records: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        for seed in options.seeds:
            for name in options.rows:
                key = {"row": name, "data": data, "seed": seed, "steps": options.steps}
                if any(key.items() <= record.items() for record in records):
                    continue
                records.append(run(name, data, seed, options.steps, options.device))
                print(json.dumps(records[-1]), flush=True)
                path.write_text(json.dumps(records, indent=1) + "\n")
                path.with_suffix(".md").write_text(table(records, data, options.steps))
        print(table(records, data, options.steps))


if __name__ == "__main__":
    main()
