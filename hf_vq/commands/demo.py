"""Train plain vector quantization and the full method on the shipped emoji, then a generator.

    hf-vq demo --output_dir demo

The demo has three parts:

1. It trains the same small autoencoder twice, side by side, with the same seed and budget. It writes two checkpoints,
   `comparison.md`, reconstructions, the codebook's use over training, and a projection of embeddings and codes.
2. It loads the better checkpoint in a new process with `AutoModel.from_pretrained` and compares tokens.
3. It trains a MaskGIT on the tokens of the full method, and draws emoji of every class beside real ones.

It takes some minutes on two cores. `--quick` leaves out the generator.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hf_vq.commands.running import command
from hf_vq.data.images import ImageDataset
from hf_vq.data.reading import decode_image
from hf_vq.data.sources import load_images
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_maskgit import MaskGitModel
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.plots.codebook import projection, usage_curves
from hf_vq.plots.images import reconstruction_grid, sample_sheet
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.tokenizer import TokenizerTrainer

BACKBONE: dict[str, Any] = {"architecture": "sqvae", "image_size": 32, "base_channels": 64, "num_codes": 1024}
# Plain VQ at its best here: a straight-through gradient, one loss for encoder and codebook, and the dimension of the
# codes and weight of that loss that worked best on other images (benchmarks/quality.py --tune).
PLAIN: dict[str, Any] = {
    "embed_dim": 3,
    "beta": 0.95,
    "commitment_weight": 1.0,
    "sync_nu": 0.0,
    "affine_lr": 0.0,
    "alternating_steps": 0,
    "replace_freq": 0,
    "kmeans_init": False,
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {"plain VQ": ("plain", PLAIN), "full method": ("full", {"embed_dim": 4})}

REAL, GENERATED = 4, 8  # columns of the sheet of samples
SAMPLING: dict[str, Any] = {"num_steps": 12, "guidance_scale": 2.0, "temperature": 0.9, "choice_temperature": 3.0}

RELOAD = """
import json, sys, torch
import hf_vq
from transformers import AutoImageProcessor, AutoModel
from hf_vq.data import ImageDataset, load_images
folder, count = sys.argv[1], int(sys.argv[2])
model = AutoModel.from_pretrained(folder).eval()
processor = AutoImageProcessor.from_pretrained(folder)
images = load_images("noto-emoji-32", "test")[:count]["image"]
from PIL import Image
import io
pictures = [Image.open(io.BytesIO(image["bytes"])) for image in images]
with torch.no_grad():
    tokens = model.encode(**processor(pictures, return_tensors="pt")).image_tokens
json.dump(tokens.tolist(), sys.stdout)
"""


@command
def main(words: list[str]) -> None:
    """Trains, compares, reloads and draws."""
    parser = argparse.ArgumentParser(
        prog="hf-vq demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("demo"))
    parser.add_argument("--max_steps", type=int, default=1200, help="optimizer steps of each of the two runs")
    parser.add_argument("--quick", action="store_true", help="train only the tokenizers")
    parser.add_argument("--generator_steps", type=int, help="optimizer steps of the generator (default: its recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    output = options.output_dir
    output.mkdir(parents=True, exist_ok=True)

    train_images = ImageDataset(load_images("noto-emoji-32", "train"), 32)
    test_images = ImageDataset(load_images("noto-emoji-32", "test"), 32)
    pixel_values = torch.stack([test_images[i]["pixel_values"] for i in range(len(test_images))])
    results, curves, reconstructions, clouds = {}, {}, {}, {}
    for title, (name, quantizer) in RUNS.items():
        print(f"\n{title}: {options.max_steps} steps", flush=True)
        work = output / f"{name}-run"
        torch.manual_seed(options.seed)
        model = VQModel(VQConfig(**BACKBONE, **quantizer))
        args = TokenizerTrainingArguments(
            output_dir=str(work),
            overwrite_output_dir=True,
            dataset="noto-emoji-32",
            eval_split="test",
            max_steps=options.max_steps,
            lr_scheduler="onecycle",
            eval_steps=max(1, options.max_steps // 12),
            save_steps=0,
            seed=options.seed,
        )
        trainer = TokenizerTrainer(model, args, train_images, test_images, VQImageProcessor(image_size=32))
        start = time.perf_counter()
        metrics = trainer.train()
        results[title] = {**metrics, "seconds": time.perf_counter() - start}
        trainer.close()
        curves[title] = [
            (line["step"], line["perplexity"])
            for line in map(json.loads, (work / "metrics.jsonl").read_text().splitlines())
            if line["split"] == "eval"
        ]
        reconstructions[title], clouds[title] = look_at(model.eval(), pixel_values)
        replace_folder(work / "final", output / name)
        shutil.rmtree(work)

    (output / "comparison.md").write_text(table(results, options.max_steps, options.seed))
    reconstruction_grid(pixel_values[:10], {name: images[:10] for name, images in reconstructions.items()}).save(
        output / "reconstructions.png"
    )
    usage_curves(curves, maximum=BACKBONE["num_codes"]).save(output / "perplexity.png")
    projection(*({name: cloud[i] for name, cloud in clouds.items()} for i in range(3))).save(output / "projection.png")
    print("\n" + (output / "comparison.md").read_text())

    best = min(results, key=lambda title: results[title]["mse"])
    reload(output / RUNS[best][0], pixel_values[:64])
    if not options.quick:
        train_generator(output, options.generator_steps, options.seed)
        draw_samples(MaskGitModel.from_pretrained(output / "generator")).save(output / "samples.png")
    print(f"\nPictures, table and checkpoints are in {output}/")


@torch.no_grad()
def look_at(model: VQModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Returns reconstructions, and for the projection: embeddings, codes and the mask of the codes in use."""
    out = model(pixel_values)
    embeddings = model.encode(pixel_values).last_hidden_state.movedim(1, -1).flatten(0, -2)
    used = torch.zeros(model.config.num_codes, dtype=torch.bool)
    used[out.image_tokens.flatten()] = True
    return out.decoded_pixel_values, (embeddings, model.quantize.get_codebook(), used)


def table(results: dict[str, dict[str, float]], steps: int, seed: int) -> str:
    """Writes the held-out numbers as a Markdown table."""
    lines = [
        f"206 held-out Noto Emoji of 32 px, 1,024 codes, {steps} steps of batch 32, seed {seed}. Encoder and decoder "
        "are the same; plain VQ has 3-dimensional codes, its best, and the full method has 4-dimensional ones.",
        "",
        "| | MSE x1e-3 | PSNR | perplexity | active codes | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for title, row in results.items():
        lines.append(
            f"| {title} | {1e3 * row['mse']:.2f} | {row['psnr']:.2f} dB | {row['perplexity']:.0f} | "
            f"{row['active_codes']:.0f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def replace_folder(source: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)


def reload(folder: Path, pixel_values: torch.Tensor) -> None:
    """Loads the checkpoint in a new process and compares its tokens with this process's."""
    with torch.no_grad():
        expected = VQModel.from_pretrained(folder).eval().encode(pixel_values).image_tokens
    code = [sys.executable, "-c", RELOAD, str(folder), str(len(pixel_values))]
    found = torch.tensor(json.loads(subprocess.run(code, check=True, capture_output=True, text=True).stdout))
    if not torch.equal(found, expected):
        raise SystemExit(
            f"error: {(found != expected).sum()} of {expected.numel()} tokens differ after reloading {folder}."
        )
    print(
        f"AutoModel.from_pretrained({str(folder)!r}) in a new process, images through its AutoImageProcessor: "
        f"all {expected.numel():,} tokens identical."
    )


def train_generator(output: Path, max_steps: int | None, seed: int) -> None:
    """Makes tokens of the full method and trains a generator by its recipe, with the commands of the README."""
    tokens, work = output / "tokens", output / "generator-run"
    for folder in (tokens, work):
        shutil.rmtree(folder, ignore_errors=True)
    tokenizer = str(output / "full")
    run("tokenize", tokenizer=tokenizer, dataset="noto-emoji-32", output_dir=tokens)
    settings = {} if max_steps is None else {"max_steps": max_steps, "warmup_steps": max_steps // 15}
    places = {"tokens": tokens, "tokenizer": tokenizer, "output_dir": work}
    run("train-generator", config="noto_emoji_32_maskgit", **places, seed=seed, **settings)
    replace_folder(work / "final", output / "generator")
    shutil.rmtree(work)


def run(command: str, **options: Any) -> None:
    """Runs one of the other commands in a process of its own."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    print("\n" + " ".join(["hf-vq", command, *words]), flush=True)
    subprocess.run([sys.executable, "-m", "hf_vq", command, *words], check=True)


def draw_samples(model: MaskGitModel, sampling: dict[str, Any] = SAMPLING) -> Image.Image:
    """Draws a row for each class: real training emoji, a gap, and generated ones."""
    rows = load_images("noto-emoji-32", "train")
    names = rows.features["label"].names
    labels = [number for number in range(len(names)) for _ in range(GENERATED)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(labels))]
    generated = model.generate(class_labels=labels, generator=generators, **sampling).images
    images: list[Image.Image] = []
    for number in range(len(names)):
        members = [index for index, label in enumerate(rows["label"]) if label == number]
        real = [decode_image(rows[members[i * len(members) // REAL]]) for i in range(REAL)]
        gap = Image.new("RGB", real[0].size, "white")
        images += [*real, gap, *generated[number * GENERATED : (number + 1) * GENERATED]]
    return sample_sheet(images, row_labels=names, columns=REAL + 1 + GENERATED)


if __name__ == "__main__":
    main()
