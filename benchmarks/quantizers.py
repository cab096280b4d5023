"""All kinds of quantizers, tuned alike, in one autoencoder with one budget (see autoencoder.py).

    make bench-quantizers
    python benchmarks/quantizers.py --tune --data photographs --photos FOLDER
    python benchmarks/quantizers.py --kinds "full method" "plain VQ" --codes 16384 --seeds 0 1 2

`--tune` tries six candidates of each kind (quantizers_candidates.py), for a third of the steps, on images that no
table measures. The candidate with the lowest error enters the table, with three seeds. Images are
the shipped emoji, or photographs of a folder: every third photograph is measured, every fourth of the others
is for tuning. A run that results/quantizers_DATA.json holds for these steps is not run again.

A lead is called one if the mean difference from the best row, over the seeds of both, is more than twice its standard
error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import resource
import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import autoencoder
import torch
from quantizers_candidates import Candidate, candidates
from run_records import holds, load_records, mean_deviation, save_records

from hf_vq import VQConfig, VQModel, no_vq
from hf_vq.metrics.features import EfficientNetLite0, FeatureExtractor

RESULTS = Path(__file__).parent / "results"
STEPS = {"tuning": 500, "table": 1500}
CHANNELS = 64
FLOOR = "no quantization"


def images(data: str, photos: Path | None, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that train and images that are measured, `(N, 3, 32, 32)` in [-1, 1]."""
    if data == "emoji":
        train, test = autoencoder.emoji()
        count = len(train) * 4 // 5
        return (train[:count], train[count:]) if part == "tuning" else (train, test)
    assert photos is not None
    names = [str(path) for path in sorted(photos.resolve().iterdir())]
    test_names, others = names[::3], [name for index, name in enumerate(names) if index % 3]
    if part == "tuning":
        test_names, others = others[::4], [name for index, name in enumerate(others) if index % 4]
    return autoencoder._tiles(tuple(others), 32), autoencoder._tiles(tuple(test_names), 32)


def build(candidate: Candidate, num_codes: int, seed: int) -> VQModel:
    """The autoencoder with this candidate's quantizer."""
    torch.manual_seed(seed)
    config = VQConfig(
        architecture="sqvae",
        image_size=autoencoder.SIZE,
        base_channels=CHANNELS,
        num_codes=candidate.num_codes or num_codes,
        embed_dim=candidate.embed_dim,
        **candidate.fields,
    )
    return VQModel(config)


@torch.no_grad()
def network_distance(model: VQModel, test: torch.Tensor, network: FeatureExtractor) -> float:
    """Squared distance of an image and its reconstruction in a network's features, over that of two images."""
    model.eval()
    found = []
    for batch in test[:512].split(64):
        decoded = model(batch).decoded_pixel_values.clamp(-1, 1)
        found.append([network(((each + 1) * 127.5).round().byte()).values for each in (batch, decoded)])
    ours, theirs = (torch.cat(each) for each in zip(*found, strict=True))
    between = (ours - ours.roll(1, 0)).square().sum(1).mean()
    return float((ours - theirs).square().sum(1).mean() / between)


def run(key: dict[str, Any], candidate: Candidate, photos: Path | None) -> dict[str, Any]:
    """Trains and evaluates one row, and returns its record."""
    torch.set_num_threads(key.pop("threads"))
    network = EfficientNetLite0() if key["part"] == "table" else None  # first, for its package may be missing
    train, test = images(key["data"], photos, key["part"])
    model = build(candidate, key["num_codes"], key["seed"])
    with no_vq(model) if key["kind"] == FLOOR else nullcontext():
        clock = autoencoder.train(
            model, train, commitment_weight=candidate.commitment_weight, steps=key["steps"], seed=key["seed"]
        )
        metrics = autoencoder.evaluate(model, test, model.config.num_codes)
        if network is not None:
            metrics["network_distance"] = network_distance(model, test, network)
    metrics["cpu_milliseconds"] = 1000 * clock.cpu_seconds / key["steps"]  # of wall time, other rows may take a part
    metrics["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**dataclasses.asdict(candidate), **key, **metrics}  # with the number of codes that was asked for


def alone(*arguments: Any) -> dict[str, Any]:
    """`run` in a process of its own, whose memory is the row's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, arguments)


def chosen(records: list[dict[str, Any]], kind: str, num_codes: int) -> Candidate | None:
    """The candidate with the lowest error, or None if some have not been tried."""
    tried = [r for r in records if (r["part"], r["kind"], r["num_codes"]) == ("tuning", kind, num_codes)]
    errors = {record["knobs"]: record["mse"] for record in tried}
    every = candidates(num_codes)[kind]
    if any(candidate.knobs not in errors for candidate in every):
        return None
    finite = {name: error if math.isfinite(error) else math.inf for name, error in errors.items()}
    return min(every, key=lambda candidate: finite[candidate.knobs])


def leads(best: list[float], other: list[float]) -> bool:
    """Whether the difference of the means is beyond the noise; with fewer than two seeds nobody knows."""
    if min(len(best), len(other)) < 2:
        return False
    error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (best, other)))
    return statistics.mean(other) - statistics.mean(best) > 2 * error


def table(records: list[dict[str, Any]], data: str, steps: int) -> str:
    """Markdown tables, one for each number of codes, the lowest error first."""
    lines = [
        f"{data.capitalize()}: {steps} steps of batch 32; held-out images, mean ± deviation over the seeds. "
        "A star: the first row is ahead beyond the noise.",
        "",
    ]
    shown = [record for record in records if record["part"] == "table" and record["steps"] == steps]
    for num_codes in sorted({record["num_codes"] for record in shown}):
        rows: dict[str, list[dict[str, Any]]] = {}
        for record in shown:
            if record["num_codes"] == num_codes:
                rows.setdefault(record["kind"], []).append(record)
        quantized = [kind for kind in rows if kind != FLOOR]
        quantized.sort(key=lambda kind: statistics.mean(record["mse"] for record in rows[kind]))
        columns = [
            "",
            "settings",
            "MSE x1e-3",
            "PSNR",
            "network",
            "codes used",
            "perplexity",
            "CPU ms a step",
            "MB",
            "seeds",
        ]
        lines += [f"{num_codes:,} codes", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for kind in [*quantized, *([FLOOR] if FLOOR in rows else [])]:
            of = {name: [r[name] for r in rows[kind]] for name in rows[kind][0]}
            behind = kind in quantized[1:] and leads([r["mse"] for r in rows[quantized[0]]], of["mse"])
            no_codes = kind == FLOOR
            cells = [
                kind,
                "" if no_codes else of["knobs"][0],
                mean_deviation([1e3 * value for value in of["mse"]], 2) + " *" * behind,
                mean_deviation(of["psnr"], 2),
                mean_deviation(of["network_distance"], 3),
                "" if no_codes else mean_deviation([100 * value for value in of["usage"]], 1) + "%",
                "" if no_codes else mean_deviation(of["perplexity"], 0),
                mean_deviation(of["cpu_milliseconds"], 0),
                mean_deviation(of["memory_mb"], 0),
                ", ".join(map(str, of["seed"])),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tune", action="store_true", help="try the candidates of each kind instead")
    parser.add_argument("--kinds", nargs="*", metavar="KIND", help="run only these kinds")
    parser.add_argument("--data", default="emoji", choices=["emoji", "photographs"])
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="the photographs")
    parser.add_argument("--codes", nargs="*", type=int, default=[1024, 16384])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="default: 1500, and 500 with --tune")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.data == "photographs" and options.photos is None:
        parser.error("--data photographs needs --photos FOLDER")
    part = "tuning" if options.tune else "table"
    steps = options.steps or STEPS[part]
    path = RESULTS / f"quantizers_{options.data}.json"
    records = load_records(path)
    protocol = {**autoencoder.PROTOCOL, "images": __doc__.split("\n\n")[2], "threads": options.threads}
    for seed in options.seeds[:1] if options.tune else options.seeds:
        for num_codes in options.codes:
            every = candidates(num_codes)
            unknown = sorted(set(options.kinds or ()) - {*every, FLOOR})
            if unknown:
                parser.error(f"no kind {unknown[0]!r}; there are: {', '.join([*every, FLOOR])}")
            rows = [(kind, row) for kind in every for row in (every[kind] if options.tune else [None])]
            if not options.tune:
                rows.append((FLOOR, every["plain VQ"][1]))
            for kind, given in rows:
                if options.kinds and kind not in options.kinds:
                    continue
                candidate = given or chosen(records, kind, num_codes)
                if candidate is None:
                    print(f"{kind}, {num_codes:,} codes: not tuned yet, see --tune")
                    continue
                key = {
                    "part": part,
                    "kind": kind,
                    "data": options.data,
                    "num_codes": num_codes,
                    "seed": seed,
                    "steps": steps,
                }
                if holds(records, key | {"knobs": candidate.knobs}):
                    continue
                row = alone({**key, "threads": options.threads}, candidate, options.photos)
                records = [*load_records(path), row]  # anew, for another process may run other kinds
                print(json.dumps(records[-1]), flush=True)
                save_records(path, protocol, records, table(records, options.data, STEPS["table"]))
    print(table(records, options.data, options.steps or STEPS["table"]))


if __name__ == "__main__":
    main()
