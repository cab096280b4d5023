"""Writes the files beside this script, with the scripts and the public names of a checkout of hf_vq.

It was run once, with commit d79e612 (version 0.1.0) checked out in OLD and the packages of its constraints.txt:

    git worktree add --detach OLD d79e612
    PYTHONPATH=OLD OMP_NUM_THREADS=1 python tests/data/written_by_0_1/make_fixtures.py OLD

The files stand for what people have on their disks, so they are not written again by later versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import hf_vq
from hf_vq import (
    MaskGitModel,
    VQImageProcessor,
    VQModel,
    VQModelForImageClassification,
    load_token_dataset,
)

HERE = Path(__file__).resolve().parent
TRAINING = (
    "--dataset pictures --eval_split test --use_cpu --disable_tqdm --train_batch_size 6 --learning_rate 2e-3 "
    "--logging_steps 1"
).split()
SQVAE = (
    "--architecture sqvae --image_size 16 --base_channels 4 --num_res_blocks 1 --embed_dim 4 --num_codes 16".split()
)
VQGAN = (
    "--architecture vqgan --image_size 16 --base_channels 4 --channel_multiplier 1 1 --num_res_blocks 1 "
    "--latent_channels 4 --attn_resolutions 8 --norm_num_groups 2 --embed_dim 4 --num_codes 16"
).split()
MASKGIT = (
    "--tokens tokens --tokenizer models/vector --eval_split test --use_cpu --disable_tqdm --train_batch_size 6 "
    "--learning_rate 2e-3 --logging_steps 1 --num_sample_images 2 --sample_steps 2 --hidden_size 16 "
    "--num_hidden_layers 1 --num_attention_heads 2 --intermediate_size 16"
).split()
# One folder of a tokenizer for each, with the name of what is special about it.
TOKENIZERS = {
    "vector": SQVAE,
    "group": [*SQVAE, *"--quantizer_type group --num_groups 2 --share_codebook false".split()],
    "residual": [*SQVAE, *"--quantizer_type residual --num_groups 3".split()],
    "ema": [*SQVAE, *"--codebook_update ema --alternating_steps 0 --sync_nu 0.0".split()],
    "affine_l2": [*SQVAE, *"--affine_lr 2.0 --affine_groups 2 --norm l2 --cb_norm l2".split()],
    "sgd": [*SQVAE, *"--alternating_kind sgd --alternating_steps 2 --alternating_lr 0.5".split()],
    "vqgan": VQGAN,
}
CLASSIFIER = [*TRAINING, *"--image_size 16 --base_channels 1 --num_codes 16 --dropout 0.2".split()]
# Two checkpoints are written before the kill, of which the limit keeps the second.
LENGTH = "--max_steps 8 --eval_steps 4 --save_steps 2 --save_total_limit 1".split()
RUNS = {
    "tokenizer": (
        "train_tokenizer.py",
        [*TRAINING, *SQVAE, *LENGTH, *"--use_ema --ema_decay 0.9 --monitor_steps 3".split()]
        + "--adversarial_weight 0.1 --adversarial_start 2 --discriminator_channels 8 --discriminator_layers 1".split()
        + "--gradient_accumulation_steps 2 --replace_freq 2 --affine_lr 2.0 --monitor_images 4".split(),
    ),
    "ema_codebook": (
        "train_tokenizer.py",
        [*TRAINING, *SQVAE, *LENGTH, "--replace_policy", "busy", "--replace_freq", "2"]
        + "--codebook_update ema --alternating_steps 0 --sync_nu 0.0".split(),
    ),
    "generator": ("train_generator.py", [*MASKGIT, *LENGTH, "--use_ema", "--ema_decay", "0.9"]),
    "classifier": ("train_classifier.py", [*CLASSIFIER, *LENGTH, "--affine_lr", "2.0", "--random_crop"]),
}
TOKENIZE = (
    "--tokenizer models/vector --dataset pictures --flip --images_per_shard 5 --batch_size 5 --use_cpu --disable_tqdm"
).split()
# A kill at the moment before something takes its name; the first word says which name.
KILLED = """
import os, runpy, signal, sys

replace = os.replace


def replace_or_die(source, target, **options):
    if os.path.basename(target) == name:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target, **options)


name, *sys.argv = sys.argv[1:]
os.replace = replace_or_die
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def write_pictures(folder: Path) -> None:
    """Round and striped pictures with some noise, a little higher than wide."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:20, :16]
    for split, count in (("train", 20), ("test", 6)):
        for number in range(count):
            kind = ("round", "striped")[number % 2]
            y, x, size = generator.integers(4, 12, 3)
            inside = (rows - y) ** 2 + (columns - x) ** 2 < size**2 if number % 2 == 0 else (rows + columns) % size < 3
            colors = generator.integers(0, 256, (2, 3))
            pixels = np.where(inside[..., None], colors[0], colors[1])
            path = folder / split / kind / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def run(script: Path, words: list[str], killed_before: str | None = None) -> None:
    """Runs a script to its end, or kills it when a file or folder of that name is about to appear."""
    command = [str(script), *words] if killed_before is None else ["-c", KILLED, killed_before, str(script), *words]
    code = subprocess.run([sys.executable, *command]).returncode
    if code != (0 if killed_before is None else -9):
        raise SystemExit(f"{script.name} ended with {code}")


def remove_pictures_and_code(folder: Path) -> None:
    """Removes what a test does not read and what would take the most space."""
    for pattern in ("*.png", "*.py"):
        for path in folder.rglob(pattern):
            path.unlink()
    for path in folder.rglob("*"):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def sha256(path: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@torch.no_grad()
def answers(folder: Path, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    """What the model in a folder says about three pictures; the tests ask the same."""
    pixel_values = VQImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt").pixel_values
    if folder.name == "classifier":
        out = VQModelForImageClassification.from_pretrained(folder).eval()(pixel_values)
        return {"image_tokens": out.image_tokens, "logits": out.logits}
    if folder.name == "maskgit":
        model = MaskGitModel.from_pretrained(folder).eval()
        tokens, labels = model.encode(pixel_values), torch.tensor([0, 1, 1])
        mask = torch.arange(tokens.numel()).view_as(tokens) % 3 == 0
        logits = model(tokens, class_labels=labels, mask=mask).logits
        seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
        drawn = model.generate(labels, num_steps=4, guidance_scale=2.0, generator=seeds, output_type="pt")
        return {"image_tokens": tokens, "logits": logits, "drawn_tokens": drawn.image_tokens, "drawn": drawn.images}
    tokenizer = VQModel.from_pretrained(folder).eval()
    tokens = tokenizer.encode(pixel_values).image_tokens
    pixels = tokenizer.decode(tokens).decoded_pixel_values
    images = VQImageProcessor.from_pretrained(folder).postprocess(pixels, "pt")
    return {"image_tokens": tokens, "pixels": pixels, "images": images}


def write_answers(name: str) -> None:
    """Writes down what a model says about three of the held-out pictures."""
    pictures: list[Image.Image] = [Image.open(path) for path in sorted(Path("pictures/test").rglob("*.png"))[1::2]]
    tensors = {key: value.contiguous() for key, value in answers(Path("models", name), pictures).items()}
    assert len(tensors["image_tokens"].unique()) >= 3, f"{name} says too little to compare"
    save_file(tensors, f"expected/answers_{name}.safetensors")


def main(checkout: Path) -> None:
    """Writes everything into a temporary folder, with names relative to it, and then moves it here."""
    scripts = checkout.resolve() / "scripts"
    if Path(hf_vq.__file__).resolve().parent != scripts.parent / "hf_vq":
        raise SystemExit(f"hf_vq is imported from {hf_vq.__file__}: set PYTHONPATH to {checkout}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as workplace:
        os.chdir(workplace)
        os.environ["HF_HOME"] = f"{workplace}/home"
        write_pictures(Path("pictures"))
        Path("models").mkdir()
        Path("expected").mkdir()

        for name, words in TOKENIZERS.items():
            run(
                scripts / "train_tokenizer.py",
                [
                    *TRAINING,
                    *words,
                    "--max_steps",
                    "100",
                    "--logging_steps",
                    "100",
                    "--output_dir",
                    f"out/{name}",
                ],
            )
            shutil.copytree(f"out/{name}/final", f"models/{name}")
            write_answers(name)
        shutil.make_archive("vector_as_written", "zip", "models/vector")
        VQModel.from_pretrained("models/vqgan").save_pretrained("models/unsigned")
        VQImageProcessor(image_size=16, do_normalize=False).save_pretrained("models/unsigned")
        write_answers("unsigned")

        run(scripts / "tokenize_dataset.py", [*TOKENIZE, "--output_dir", "tokens"])
        run(scripts / "tokenize_dataset.py", [*TOKENIZE, "--output_dir", "unfinished/tokens"], "train-00002.parquet")
        run(
            scripts / "train_generator.py",
            [*MASKGIT, "--max_steps", "100", "--logging_steps", "100", "--output_dir", "out/maskgit"],
        )
        shutil.copytree("out/maskgit/final", "models/maskgit")
        write_answers("maskgit")
        run(
            scripts / "train_classifier.py",
            [*CLASSIFIER, "--max_steps", "100", "--logging_steps", "100", "--output_dir", "out/classifier"],
        )
        shutil.copytree("out/classifier/final", "models/classifier")
        write_answers("classifier")

        runs: dict[str, Any] = {}
        for name, (script, words) in RUNS.items():
            straight, killed = Path("straight", name), Path("unfinished", name)
            run(scripts / script, [*words, "--output_dir", str(straight)])
            run(scripts / script, [*words, "--output_dir", str(killed)], "checkpoint-6")
            for path in (killed / ".tmp-checkpoint-6").iterdir():  # a kill a moment earlier leaves no more than this
                if path.name != "config.json":
                    path.unlink()
            weights = straight / "final" / "model.safetensors"
            shutil.copy(weights, f"expected/{name}.safetensors")
            runs[name] = {
                "script": script,
                "words": words,
                "weights_sha256": sha256(weights),
                "metrics": metrics(straight),
            }
            if (straight / "codebook").exists():
                shutil.copytree(straight / "codebook", f"expected/{name}_codebook")

        rows: dict[str, Any] = {}
        for split in ("train", "test"):
            found = load_token_dataset("tokens", split)
            rows[split] = [{**row, "image_tokens": row["image_tokens"].tolist()} for row in found]
        models = sorted(path.name for path in Path("models").iterdir())
        expected = {
            "commit": subprocess.run(
                ["git", "-C", checkout, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
            ).stdout.strip(),
            "torch": torch.__version__,
            "models": {name: sha256(Path("models", name, "model.safetensors")) for name in models},
            "tokens": rows,
            "tokenize": TOKENIZE,
            "runs": runs,
        }
        Path("expected.json").write_text(json.dumps(expected) + "\n")

        for folder in ("models", "unfinished"):
            remove_pictures_and_code(Path(folder))
        for name in (
            "pictures",
            "models",
            "vector_as_written.zip",
            "tokens",
            "unfinished",
            "expected",
            "expected.json",
        ):
            shutil.move(name, HERE / name)
        os.chdir(HERE)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
