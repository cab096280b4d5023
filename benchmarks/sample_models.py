"""Trains the sample models that come with the package, and packs them into hf_vq/samples.

    python benchmarks/sample_models.py

It trains the tokenizer by the recipe emoji_sample, makes tokens, and trains the generator on them by
emoji_sample_maskgit. Given again, the same command goes on from the last checkpoint. Then it stores the weights as
float16, measures both on the held-out emoji, writes the numbers into their cards, and draws the sheet of samples.
Nothing is selected: the last weights of the one run are packed, and the sheet shows the seeds 0, 1, 2, ...
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hf_vq.commands.demo import draw_samples
from hf_vq.data.sources import SAMPLE_DATASET
from hf_vq.hub.folders import CONFIG_FILE, PROCESSOR_FILE
from hf_vq.hub.samples import SAMPLES
from hf_vq.modeling.modeling_maskgit import MaskGitModel

ROOT = Path(__file__).parents[1]
TOKENIZER, GENERATOR = "emoji-tokenizer", "emoji-generator"
RECIPES = {TOKENIZER: "emoji_sample", GENERATOR: "emoji_sample_maskgit"}
COMMANDS = {TOKENIZER: "train-tokenizer", GENERATOR: "train-generator"}
SAMPLING: dict[str, Any] = {"num_steps": 24, "guidance_scale": 1.3, "temperature": 0.5, "choice_temperature": 8.0}
WEIGHTS = "model.safetensors"
# They name files of code, which the package has itself, and the folder of the run.
LEFT_OUT = ("auto_map", "custom_pipelines", "_name_or_path")
ABOUT = (
    "This model comes with the package: `{name}` is its name for every command of `hf-vq`, and "
    '`hf_vq.sample_model("{name}")` its folder. The weights are stored as float16 and load as float32.',
    "`make samples` trains both sample models and packs them; the recipe is `{recipe}` (`hf-vq recipes {recipe}`). "
    "{time}Nothing was selected: it is the last checkpoint of the one run that was trained, with seed 0. The held-out "
    "emoji took no part in training nor in a choice; the network was chosen on 85 emoji of the training split.",
    "{more}",
)


_SAMPLING_WORDS = ", ".join(f"{option.replace('_', ' ')} {value:g}" for option, value in SAMPLING.items())
MORE = {
    TOKENIZER: "",
    GENERATOR: f"It draws best with {_SAMPLING_WORDS}, chosen by eye. It was trained on 1,700 emoji and has "
    "seen each of them many times, so what it draws can come close to one of them.",
}


def hf_vq(*words: str | Path) -> None:
    """Runs one of the commands in a process of its own."""
    subprocess.run([sys.executable, "-m", "hf_vq", *map(str, words)], check=True, cwd=ROOT)


def train(name: str, work: Path, *words: str | Path) -> Path:
    """Trains a model, or goes on with it, and returns the folder of its weights."""
    run = work / name
    if (run / "final").is_dir():
        pass
    elif any(run.glob("checkpoint-*")):
        hf_vq(COMMANDS[name], "--resume_from_checkpoint", "latest", "--output_dir", run)
    else:
        hf_vq(COMMANDS[name], "--config", RECIPES[name], *words, "--output_dir", run, "--overwrite_output_dir")
    return run / "final"


def pack(name: str, final: Path, folder: Path, time: str = "") -> None:
    """Copies a run's model into a folder: the weights as float16, a configuration without code, and the card.

    Args:
        name: Of the sample.
        final: The run's model.
        folder: Where to; what is there is replaced.
        time: A sentence on how long the training took.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = {key: to_half(key, value) for key, value in load_file(final / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # whoever installs the wheel is not who loads the model
    for file in (CONFIG_FILE, PROCESSOR_FILE):
        if (final / file).is_file():
            settings = json.loads((final / file).read_text())
            for part in (settings, settings.get("vq_config", {})):
                for key in LEFT_OUT:
                    part.pop(key, None)
            (folder / file).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    for picture in final.glob("*.png"):
        shutil.copyfile(picture, folder / picture.name)
    card = (final / "README.md").read_text(encoding="utf-8")
    words = {"name": name, "recipe": RECIPES[name], "time": f"{time} " if time else "", "more": MORE[name]}
    about = "\n\n".join(textwrap.fill(part.format(**words), 120) for part in ABOUT).strip()
    card = card.replace("library_name: transformers\n", "library_name: transformers\nlicense: apache-2.0\n", 1)
    card = card.replace("<!-- hf_vq: begin", f"{about}\n\n<!-- hf_vq: begin", 1)
    card = card.replace('name = "path/to/this/folder"', f'name = hf_vq.sample_model("{name}")')
    card = card.replace("import torch\n", "import hf_vq\nimport torch\n", 1).replace(", trust_remote_code=True", "")
    (folder / "README.md").write_text(card, encoding="utf-8")


def to_half(name: str, value: torch.Tensor) -> torch.Tensor:
    """A weight as float16; whole numbers and flags stay as they are.

    Raises:
        ValueError: It is too large for float16.
    """
    if not value.is_floating_point():
        return value
    half = value.half()
    if not half.isfinite().all():
        raise ValueError(f"{name} has values of {value.abs().max():g}, too large for float16")
    return half


def measure(folder: Path, work: Path, **sampling: Any) -> None:
    """Measures a packed model on the held-out emoji, and writes the numbers into its card."""
    words = [word for option, value in sampling.items() for word in (f"--{option}", str(value))]
    output = work / "evaluation" / folder.name
    words += ["--dataset", SAMPLE_DATASET, "--split", "test", "--output_dir", str(output), "--update_cards"]
    hf_vq("evaluate", "--model", folder, *words)


def main() -> None:
    """Trains what is not trained yet, packs, measures, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, default=ROOT / "sample_models", help="folder of the runs")
    parser.add_argument("--samples_dir", type=Path, default=SAMPLES, help="folder of the packed models")
    parser.add_argument("--time", default="", help="a sentence for the cards on how long it took")
    options = parser.parse_args()
    work = options.work_dir.absolute()

    tokenizer = train(TOKENIZER, work)
    tokens = work / "tokens"
    hf_vq("tokenize", "--tokenizer", tokenizer, "--dataset", SAMPLE_DATASET, "--output_dir", tokens)
    generator = train(GENERATOR, work, "--tokens", tokens, "--tokenizer", tokenizer)
    for name, final in ((TOKENIZER, tokenizer), (GENERATOR, generator)):
        pack(name, final, options.samples_dir / name, options.time)
    measure(options.samples_dir / TOKENIZER, work)
    measure(options.samples_dir / GENERATOR, work, num_samples=206, **SAMPLING)
    model = MaskGitModel.from_pretrained(options.samples_dir / GENERATOR)
    draw_samples(model, SAMPLING).save(ROOT / "docs" / "samples.png")


if __name__ == "__main__":
    main()
