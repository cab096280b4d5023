"""The mechanism in pictures: embeddings P, codes C and codes in use Q over training, and the straight-through gap.

    python benchmarks/mechanism.py

Trains one small autoencoder on the shipped emoji with each method. All share network, data order and budget. The
script writes pictures and their data into `--output_dir` and the table into results/mechanism.md and .json. The
pictures show the first seed. A run that `--output_dir` already holds is not trained again, and an interrupted
run continues.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from mechanism_pictures import codebook_curves, density_ridges, projection_animation, projection_panels, save_animation
from run_records import mean_deviation, save_records
from toy_trajectory import toy_trajectories

from hf_vq import TokenizerTrainer, TokenizerTrainingArguments, VQConfig, VQModel
from hf_vq.data.images import ImageDataset
from hf_vq.data.sources import load_images
from hf_vq.plots.codebook import usage_histogram
from hf_vq.training.snapshots import CodebookSnapshot, load_snapshots

RESULTS = Path(__file__).parent / "results"
# All methods have codes as wide as the encoder. A narrow projection would do much of the work by itself.
BACKBONE: dict[str, Any] = {
    "architecture": "sqvae", "image_size": 32, "base_channels": 64, "embed_dim": 64, "num_codes": 1024,
}  # fmt: skip
STANDARD: dict[str, Any] = {
    "beta": 0.95, "commitment_weight": 10.0, "sync_nu": 0.0, "affine_lr": 0.0, "alternating_steps": 0,
    "replace_freq": 0, "kmeans_init": False,
}  # fmt: skip
# The parts are those of quality_candidates.py. The full method is the default of `VQConfig`.
METHODS: dict[str, dict[str, Any]] = {
    "standard": STANDARD,
    "affine": {**STANDARD, "affine_lr": 2.0, "commitment_weight": 2.0},
    "synchronized": {**STANDARD, "sync_nu": 0.2},
    "alternating": {**STANDARD, "beta": 1.0, "commitment_weight": 0.0, "alternating_steps": 1},
    "replacement": {**STANDARD, "replace_freq": 20},
    "full method": {},
}
MONITORED_IMAGES = 128
DRAWN = ("standard", "full method")
COLUMNS: dict[str, tuple[str, int]] = {
    "perplexity": ("perplexity", 0),
    "active_codes": ("codes used", 0),
    "quantization_error": ("quantization error", 3),
    "mean_distance": ("means", 3),
    "std_distance": ("deviations", 3),
    "wasserstein_distance": ("Wasserstein", 3),
    "gradient_gap": ("gap", 3),
    "gradient_cosine": ("cosine", 3),
    "mean_gap": ("mean gap", 3),
}


def run(method: str, seed: int, options: argparse.Namespace, datasets: tuple[Any, Any]) -> dict[str, Any]:
    """Trains one method, or continues an interrupted run, and returns its record."""
    train_images, test_images = datasets
    folder = options.output_dir / f"{method.replace(' ', '_')}-{seed}"
    torch.manual_seed(seed)
    model = VQModel(VQConfig(**{**BACKBONE, **METHODS[method]}))
    args = TokenizerTrainingArguments(
        output_dir=str(folder),
        resume_from_checkpoint="latest",
        dataset="noto-emoji-32",
        eval_split="test",
        max_steps=options.max_steps,
        lr_scheduler="onecycle",
        eval_steps=0,
        save_steps=max(1, options.max_steps // 4),
        save_total_limit=1,
        disable_tqdm=True,
        seed=seed,
        monitor_steps=max(1, options.max_steps // options.snapshots),
        monitor_images=MONITORED_IMAGES,
    )
    trainer = TokenizerTrainer(model, args, train_images, test_images)
    start = time.perf_counter()
    metrics = trainer.train()
    seconds = time.perf_counter() - start
    trainer.close()
    snapshots = load_snapshots(folder / "codebook")
    gaps = [snapshot.metrics["gradient_gap"] for snapshot in snapshots]
    print(f"{method}, seed {seed}: held-out MSE {metrics['mse']:.5f}, {seconds:.0f} s", flush=True)
    return {
        "method": method,
        "seed": seed,
        "steps": options.max_steps,
        "mse": metrics["mse"],
        **snapshots[-1].metrics,
        "mean_gap": statistics.mean(gaps),
        "snapshots": [{"step": snapshot.step, **snapshot.metrics} for snapshot in snapshots],
    }


def protocol(options: argparse.Namespace, num_train: int, num_test: int) -> dict[str, Any]:
    """The settings behind the numbers."""
    words = [f"--max_steps {options.max_steps}", "--seeds " + " ".join(map(str, options.seeds))]
    if options.methods != list(METHODS):
        words.append("--methods " + " ".join(f'"{method}"' for method in options.methods))
    return {
        "command": " ".join(["python benchmarks/mechanism.py", *words]),
        "data": f"{num_train:,} training and {num_test} held-out Noto Emoji of 32 px, shipped with the package",
        "network": "SQ-VAE, 64 channels, 8 x 8 tokens, 64-d codes, 1,024 of them",
        "budget": f"{options.max_steps} steps of batch 32, AdamW 3e-4, one-cycle",
        "seeds": options.seeds,
        "monitored_images": MONITORED_IMAGES,
        "methods": METHODS,
    }


def table(records: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Markdown table of the last step, with mean and deviation over the seeds."""
    lines = [
        f"`{facts['command']}`",
        "",
        f"{facts['data']}; {facts['network']}; {facts['budget']}; torch {torch.__version__}. The rows differ in the "
        "quantizer and the weight of its loss alone; the settings are in mechanism.json. MSE on all held-out images; "
        f"the rest after the last step on {facts['monitored_images']} of them: use of the codes; quantization error "
        "in units of the embeddings' variance; distances of the moments of embeddings P and codes C in units of P's "
        "spread (means, standard deviations, 2-Wasserstein of the two Gaussians); the straight-through gradient g_q "
        "at the encoder's output against the gradient g without quantization: gap |g_q - g| / |g|, and cosine. Mean "
        "gap: over all snapshots of the run.",
        "",
        "| | MSE x1e-3 | " + " | ".join(title for title, _ in COLUMNS.values()) + " | seeds |",
        "|---|---|" + "---|" * len(COLUMNS) + "---|",
    ]
    for method in dict.fromkeys(record["method"] for record in records):
        rows = [record for record in records if record["method"] == method]
        cells = [method, mean_deviation([1e3 * row["mse"] for row in rows], 2)]
        cells += [mean_deviation([row[name] for row in rows], digits) for name, (_, digits) in COLUMNS.items()]
        lines.append("| " + " | ".join([*cells, ", ".join(str(row["seed"]) for row in rows)]) + " |")
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, list[CodebookSnapshot]], options: argparse.Namespace) -> None:
    """Draws and saves all pictures."""
    folder = options.output_dir
    pair = {name: runs[name] for name in DRAWN if name in runs} or runs
    toy_trajectories().save(folder / "toy_trajectories.png")
    projection_panels(pair, options.steps).save(folder / "projection_panels.png")
    if options.tsne:
        projection_panels(pair, options.steps, method="tsne", max_points=700).save(folder / "projection_tsne.png")
    save_animation(projection_animation(pair), folder / "projection.gif")
    density_ridges(pair).save(folder / "density_ridges.png")
    codebook_curves(runs).save(folder / "codebook_curves.png")
    usage_histogram({name: snapshots[-1].uses for name, snapshots in runs.items()}).save(folder / "usage.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("out/mechanism"), help="folder for runs and pictures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the table")
    parser.add_argument("--max_steps", type=int, default=600, help="optimizer steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--snapshots", type=int, default=24, help="approximate number of snapshots over a run")
    parser.add_argument("--steps", type=int, nargs="+", help="steps to draw as panels (default: five over the run)")
    parser.add_argument("--tsne", action="store_true", help="also draw t-SNE panels (needs scikit-learn, slow)")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    options.results.mkdir(parents=True, exist_ok=True)

    train_images, test_images = (ImageDataset(load_images("noto-emoji-32", split), 32) for split in ("train", "test"))
    records = [
        run(method, seed, options, (train_images, test_images)) for seed in options.seeds for method in options.methods
    ]
    facts = protocol(options, len(train_images), len(test_images))
    text = table(records, facts)
    save_records(options.results / "mechanism.json", facts, records, text)
    first = options.seeds[0]
    draw(
        {
            method: load_snapshots(options.output_dir / f"{method.replace(' ', '_')}-{first}" / "codebook")
            for method in options.methods
        },
        options,
    )
    print(f"\n{text}\nPictures are in {options.output_dir}/, the table in {options.results}/mechanism.md")


if __name__ == "__main__":
    main()
