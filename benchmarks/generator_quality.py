"""Quality of the emoji generator with two tokenizers (plain VQ, full method) and two ways to give it the class.

    make demo && python benchmarks/generator_quality.py

Trains the recipe noto_emoji_32_maskgit once for each row, on tokens of the demo's two tokenizers.
The generated images are compared with the real held-out emoji, never with a tokenizer's reconstructions. The cross
entropy is that of hidden held-out tokens. It compares only rows of one tokenizer, because six codes are easier to
guess than a thousand. A run that `--work_dir` already holds in full is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.evaluation.evaluator import evaluate

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
RECIPE = "noto_emoji_32_maskgit"
DATASET = "noto-emoji-32"
ROWS: dict[str, tuple[str, list[str]]] = {
    "full method, adaLN-zero": ("full", []),
    "full method, class as a token": ("full", ["--class_conditioning", "prefix"]),
    "plain VQ, adaLN-zero": ("plain", []),
}
SAMPLING: dict[str, Any] = {
    "num_samples": 1000,
    "num_steps": 12,
    "guidance_scale": 2.0,
    "temperature": 0.8,
    "choice_temperature": 2.0,
}


def run(command: str, *words: str | Path) -> None:
    """Runs one of the commands in its own process."""
    subprocess.run([sys.executable, "-m", f"hf_vq.commands.{command}", *map(str, words)], check=True, cwd=ROOT)


def train(name: str, demo: Path, work: Path) -> Path:
    """Trains the generator of a row, unless that is done, and returns its folder."""
    tokenizer, overrides = ROWS[name]
    output = work / name.replace(" ", "_").replace(",", "")
    if not (output / "final").is_dir():
        tokens = work / f"tokens-{tokenizer}"
        words: list[str | Path] = ["--tokenizer", demo / tokenizer, "--dataset", DATASET, "--output_dir", tokens]
        run("tokenize_dataset", *words)
        words = ["--config", RECIPE, "--tokens", tokens, "--tokenizer", demo / tokenizer, "--output_dir", output]
        run("train_generator", *words, "--overwrite_output_dir", "true", *overrides)
    return output


def held_out(folder: Path) -> dict[str, float]:
    """The numbers of a run's last evaluation."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "eval"][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--demo_dir", type=Path, default=ROOT / "demo", help="the folder that `make demo` wrote")
    parser.add_argument("--work_dir", type=Path, default=ROOT / "out" / "generator_quality")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    folders = {name: train(name, options.demo_dir.resolve(), options.work_dir.resolve()) for name in ROWS}

    report = evaluate(
        EvaluationArguments(
            DATASET,
            compare=[str(folder / "final") for folder in folders.values()],
            output_dir=str(options.work_dir / "evaluation"),
            **SAMPLING,
        )
    )
    rows = [
        {"row": name, **held_out(folder), **result["metrics"]}
        for (name, folder), result in zip(folders.items(), report.results, strict=True)
    ]
    distances = [key for key in report.results[0]["metrics"] if not key.startswith("num_")]
    sampling = ", ".join(f"{name} {value}" for name, value in SAMPLING.items())
    caption = (
        f"recipe {RECIPE}, {rows[0]['step']:.0f} steps, seed 0, {rows[0]['num_images']:.0f} held-out emoji; "
        f"{sampling}. "
        "Features of distances, precision and recall: images shrunk to 8 x 8 pixels, so no FID."
    )
    columns = ["masked_cross_entropy", "masked_accuracy", *distances]
    lines = [caption, "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {row['row']} | " + " | ".join(f"{row[column]:.4g}" for column in columns) + " |" for row in rows]
    (RESULTS / "generator_quality.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "generator_quality.json").write_text(
        json.dumps({"caption": caption, "protocol": report.protocol, "rows": rows}, indent=1)
    )
    assert report.picture is not None
    report.picture.save(ROOT / "docs" / "generator_quality.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
