"""Accuracy and perplexity of classifiers with a quantized layer, with and without each part of the method.

    make bench-classifiers
    python benchmarks/classifiers.py --networks AlexNet ResNet-18 ViT-Tiny --steps 2000 --seeds 0 1 2

All rows of a network quantize the same layer and share batches, optimizer and steps. They differ in the quantizer.
First every method tries the same weights of the commitment loss, for a third of the steps, on images held out of the
training split. The best weight of each method (by accuracy, then by cross entropy) goes into the table, which is
measured on the test split. "no quantization" has nothing to choose. The small networks are the default and take about
a minute a run on one CPU core. The others take up to ten.

A run that results/classifiers.json already holds is not repeated, so an interrupted benchmark continues where it
stopped. `--fresh` runs everything again. `--quick` makes a smaller table, results/classifiers_quick.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from accelerate.utils import set_seed
from classification_data import DATA, VALIDATION_SHARE, Task, examples, held_out
from dot_plot import Panel, dot_plot
from run_records import holds, load_records, mean_deviation, save_records

from hf_vq import (
    RECOMMENDED_QUANTIZER,
    ClassifierTrainer,
    ClassifierTrainingArguments,
    VQImageClassificationConfig,
    VQModelForImageClassification,
    no_vq,
)

RESULTS = Path(__file__).parent / "results"
NUM_CODES = 1024
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
COMMITMENT_WEIGHTS = (0.25, 1.0, 5.0)
TUNING = 3  # tuning runs have this many times fewer steps
COLUMNS = 3  # panels beside each other in the figure

FLOOR = "no quantization"
PLAIN: dict[str, Any] = {
    "beta": 0.95,
    "sync_nu": 0.0,
    "affine_lr": 0.0,
    "replace_freq": 0,
    "kmeans_init": False,
    "alternating_steps": 0,
}
PARTS: dict[str, dict[str, Any]] = {
    "affine": {"affine_lr": 2.0},
    "synchronized": {"sync_nu": 0.2},
    "alternating": {"alternating_steps": 1},
    "replacement": {"replace_freq": 20},
}
METHODS: dict[str, dict[str, Any]] = {
    FLOOR: PLAIN,
    "base": PLAIN,
    **{f"base + {name}": {**PLAIN, **part} for name, part in PARTS.items()},
    "all four": {**PLAIN, **PARTS["affine"], **PARTS["synchronized"], **PARTS["alternating"], **PARTS["replacement"]},
    "defaults (all but affine, with k-means)": RECOMMENDED_QUANTIZER,
}


def small_resnet(task: Task) -> dict[str, Any]:
    """ResNet-18 with half the width."""
    sizes = {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    return {"backbone_config": {"model_type": "resnet", "num_channels": task.num_channels, **sizes}}


def vit(width: int, depth: int) -> Callable[[Task], dict[str, Any]]:
    """A ViT with three heads and 16 patches. ViT-Tiny has a width of 192 and a depth of 12."""

    def fields(task: Task) -> dict[str, Any]:
        sizes = {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": 4 * width}
        images = {"image_size": task.image_size, "num_channels": task.num_channels, "patch_size": task.image_size // 4}
        return {"backbone_config": {"model_type": "vit", "num_attention_heads": 3, **sizes, **images}}

    return fields


NETWORKS: dict[str, Any] = {
    "small AlexNet": lambda task: {"base_channels": 32},
    "small ResNet-18": small_resnet,
    "small ViT": vit(96, 6),
    "AlexNet": lambda task: {},
    "ResNet-18": lambda task: {"backbone_config": "resnet18"},
    "ViT-Tiny": vit(192, 12),
}
SMALL = [name for name in NETWORKS if name.startswith("small")]


PROTOCOL = {
    "data": {name: make.__doc__ for name, make in DATA.items()},
    "quantized": "what comes out of the block in the middle of the network",
    "methods": METHODS,
    "num_codes": NUM_CODES,
    "batch_size": BATCH_SIZE,
    "optimizer": f"AdamW {LEARNING_RATE:g}, weight decay 0.05, a tenth of the steps warm-up, then cosine",
    "commitment_weights": COMMITMENT_WEIGHTS,
    "tuning": f"each weight, {TUNING} times fewer steps, on {VALIDATION_SHARE:g} of the training images, which are "
    "held out; the highest accuracy, then the lowest cross entropy",
}


def run(key: dict[str, Any], task: Task, train: list[dict], test: list[dict], use_cpu: bool) -> dict[str, Any]:
    """Trains and measures the run that a key names, and returns its record."""
    set_seed(key["seed"])
    fields = {
        "num_labels": task.num_labels,
        "image_size": task.image_size,
        "num_channels": task.num_channels,
        "num_codes": NUM_CODES,
        "commitment_weight": key["commitment_weight"],
    }
    fields |= {**METHODS[key["method"]], **NETWORKS[key["network"]](task)}
    model = VQModelForImageClassification(VQImageClassificationConfig(**fields))
    steps = key["steps"]
    with tempfile.TemporaryDirectory() as folder, no_vq(model) if key["method"] == FLOOR else nullcontext():
        args = ClassifierTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            train_batch_size=BATCH_SIZE,
            eval_batch_size=250,
            learning_rate=LEARNING_RATE,
            warmup_steps=steps // 10,
            weight_decay=0.05,
            seed=key["seed"],
            logging_steps=0,
            eval_steps=0,
            save_steps=0,
            disable_tqdm=True,
            use_cpu=use_cpu,
        )
        trainer = ClassifierTrainer(model, args, train, test)
        began = time.process_time(), time.perf_counter()
        metrics = trainer.train()
        seconds = {"cpu_seconds": time.process_time() - began[0], "seconds": time.perf_counter() - began[1]}
        trainer.close()
    return {**key, "device": "cpu" if use_cpu else "cuda", **metrics, **seconds}


def best_weight(records: list[dict[str, Any]], method: str, network: str, data: str, steps: int) -> float:
    """The commitment weight with which a method did best on the validation images."""
    if method == FLOOR:
        return COMMITMENT_WEIGHTS[0]  # has no effect
    wanted = {"method": method, "network": network, "data": data, "steps": steps, "tuning": True}
    tried = [record for record in records if wanted.items() <= record.items()]
    return max(tried, key=lambda record: (record["accuracy"], -record["cross_entropy"]))["commitment_weight"]


def table(records: list[dict[str, Any]]) -> str:
    """Markdown tables of the mean and deviation over the seeds, one for each data set and number of steps."""
    final = [record for record in records if not record["tuning"]]
    parts = []
    weights = ", ".join(f"{weight:g}" for weight in COMMITMENT_WEIGHTS)
    for data, steps in dict.fromkeys((record["data"], record["steps"]) for record in final):
        runs = [record for record in final if (record["data"], record["steps"]) == (data, steps)]
        networks = [name for name in NETWORKS if any(record["network"] == name for record in runs)]
        lines = [
            f"{data}: test accuracy % / perplexity of the test images' codes (codes used), {NUM_CODES:,} codes, "
            f"{steps} steps of batch {BATCH_SIZE}, AdamW {LEARNING_RATE:g} with warm-up and cosine, the block in the "
            f"middle quantized; {runs[0]['num_images']:,} test images. Of each method the best commitment weight of "
            f"{weights}, on {steps // TUNING} steps and validation images.",
            "",
            "| | " + " | ".join(networks) + " |",
            "|---" * (len(networks) + 1) + "|",
        ]
        for method in METHODS:
            cells = []
            for network in networks:
                mine = [record for record in runs if (record["method"], record["network"]) == (method, network)]
                cells.append(_cell(mine))
            if any(cells):
                lines.append(f"| {method} | " + " | ".join(cells) + " |")
        devices = ", ".join(sorted({record["device"] for record in runs}))
        seeds = {name: sorted({run["seed"] for run in runs if run["network"] == name}) for name in networks}
        each = "; ".join(f"{name} {', '.join(map(str, of_network))}" for name, of_network in seeds.items())
        lines += ["", f"Seeds: {each}. Device: {devices}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return ""
    text = mean_deviation([100 * run["accuracy"] for run in runs], 1)
    if "perplexity" in runs[0]:
        used = statistics.mean(run["active_codes"] for run in runs)
        text += f" / {mean_deviation([run['perplexity'] for run in runs], 1)} ({used:.0f})"
    return text


def draw(records: list[dict[str, Any]]) -> PIL.Image.Image:
    """A picture of each method's accuracy, with one panel for each network and data set."""
    ours = ["all four", list(METHODS)[-1]]
    grid = []
    for data, steps in dict.fromkeys((record["data"], record["steps"]) for record in records):
        runs = [record for record in records if (record["data"], record["steps"]) == (data, steps)]
        panels = []
        for network in [name for name in NETWORKS if any(record["network"] == name for record in runs)]:
            panel = Panel(f"accuracy %, {network}, {data}", {method: [] for method in METHODS}, FLOOR, ours)
            for record in runs:
                if record["network"] == network:
                    panel.values[record["method"]].append(100 * record["accuracy"])
            panels.append(panel)
        grid += [panels[place : place + COLUMNS] for place in range(0, len(panels), COLUMNS)]
    return dot_plot(grid, panel_width=3.2)


def fill(path: Path, options: argparse.Namespace) -> None:
    """Runs what the file lacks. Writes the file and its table after every run."""
    records = load_records(path)

    def fill_in(key: dict[str, Any], task: Task, train: list[dict], test: list[dict]) -> None:
        if holds(records, key):
            return
        records.append(run(key, task, train, test, options.device == "cpu"))
        print(json.dumps(records[-1]), flush=True)
        save_records(path, PROTOCOL, records, table(records))

    for data in options.data:
        task = DATA[data]()
        train, test = examples(task.train, task), examples(task.test, task)
        fewer, validation = (examples(rows, task) for rows in held_out(task.train, VALIDATION_SHARE))
        for network in options.networks:
            key: dict[str, Any] = {"data": data, "network": network}
            fewer_steps = options.steps // TUNING
            for method in METHODS:
                for weight in COMMITMENT_WEIGHTS if method != FLOOR else ():
                    candidate = {"method": method, "commitment_weight": weight, "seed": 0, "steps": fewer_steps}
                    fill_in({**key, **candidate, "tuning": True}, task, fewer, validation)
            for seed in options.seeds:
                for method in METHODS:
                    weight = best_weight(records, method, network, data, fewer_steps)
                    chosen = {"method": method, "commitment_weight": weight, "seed": seed, "steps": options.steps}
                    fill_in({**key, **chosen, "tuning": False}, task, train, test)
    save_records(path, PROTOCOL, records, table(records))
    draw([record for record in records if not record["tuning"]]).save(path.with_suffix(".png"))
    print(table(records))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="*", default=SMALL, choices=list(NETWORKS))
    parser.add_argument("--data", nargs="*", default=["mnist"], choices=list(DATA))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="default: 600, and 20 with --quick")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="take few steps, to check that everything works")
    parser.add_argument("--fresh", action="store_true", help="delete the results of earlier runs first")
    options = parser.parse_args()
    options.steps = options.steps or (20 if options.quick else 600)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ("classifiers_quick.json" if options.quick else "classifiers.json")
    if options.fresh:
        path.unlink(missing_ok=True)
    fill(path, options)


if __name__ == "__main__":
    main()
