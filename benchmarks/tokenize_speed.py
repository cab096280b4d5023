"""Images per second of `encode` and `decode`, and their memory, beside diffusers' VQModel with the same weights.

    make bench-tokenize

Both models give the same tokens, and the script checks this before it times anything. Tokens may differ only where
float32 cannot tell which of two codes is nearer. The tasks alternate in one run. Images per second are those of the
best round, because other work on the machine can only add time. The ratio is the median over the rounds. Memory is the
growth of the peak over one eager call, in its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quantizer_speed import OURS, RESULTS, name_of, peak_memory
from timing import speedup, timed_rounds

from hf_vq.convert.checkpoints import convert_state_dict

SIZES = (32, 64, 256)
PIXELS = 2**15  # in a batch, which has at least two images
CONFIG: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 1,
    "latent_channels": 64,
    "num_vq_embeddings": 1024,
    "vq_embed_dim": 8,
}
THEIRS = "diffusers"
TIE = 1e-4  # difference of the distances to two codes; the two models' vectors differ by about 1e-5
Task = Callable[[torch.Tensor], torch.Tensor]


def build(device: str) -> tuple[dict[str, dict[str, Task]], Task]:
    """Both libraries with the same weights, and a function that tells which tokens are well defined.

    Returns:
        `{library: {"encode": pixels to ids (flat), "decode": ids (batch, h, w) to pixels}}`, and a function of pixels.
        It returns by how much the second nearest code is farther away than the nearest, in float64 (flat).
    """
    import diffusers

    torch.manual_seed(0)
    theirs: Any = diffusers.VQModel(**CONFIG)
    theirs.eval().to(device)
    torch.nn.init.normal_(theirs.quantize.embedding.weight, std=0.2)
    ours: Any = convert_state_dict(theirs.state_dict(), source_config=CONFIG).model
    ours.to(device)

    def decode(ids: torch.Tensor) -> torch.Tensor:
        codes = theirs.quantize.get_codebook_entry(ids.flatten(), (*ids.shape, CONFIG["vq_embed_dim"]))
        return theirs.decode(codes, force_not_quantize=True).sample

    def margin(pixels: torch.Tensor) -> torch.Tensor:
        vectors = theirs.encode(pixels).latents.movedim(1, -1).flatten(0, 2).double()
        nearest = torch.cdist(vectors, theirs.quantize.embedding.weight.double()).topk(2, largest=False).values
        return nearest[:, 1] - nearest[:, 0]

    libraries: dict[str, dict[str, Task]] = {
        OURS: {
            "encode": lambda pixels: ours.encode(pixels).image_tokens.flatten(),
            "decode": lambda ids: ours.decode(ids).decoded_pixel_values,
        },
        THEIRS: {
            "encode": lambda pixels: theirs.quantize(theirs.encode(pixels).latents)[2][2],
            "decode": decode,
        },
    }
    return libraries, margin


def make_inputs(size: int, device: str) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Pixels in [-1, 1] and the shape of their ids."""
    batch, side = max(2, PIXELS // size**2), size // 2 ** (len(CONFIG["block_out_channels"]) - 1)
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1).to(device), (batch, side, side)


@torch.no_grad()
def measure(
    modes: dict[str, dict[str, dict[str, Task]]], margin: Task, size: int, rounds: int, device: str
) -> list[dict[str, Any]]:
    """Rows of the results for one size and all modes. First checks that the libraries agree in each mode."""
    pixels, shape = make_inputs(size, device)
    tokens = modes["eager"][THEIRS]["encode"](pixels).reshape(shape)
    tie = margin(pixels) < TIE
    image = modes["eager"][THEIRS]["decode"](tokens)
    ties: dict[tuple[str, str], int] = {}
    tasks: dict[tuple[str, str], Callable[[], object]] = {}
    for mode, libraries in modes.items():
        for name, functions in libraries.items():
            different = functions["encode"](pixels) != tokens.flatten()
            assert not (different & ~tie).any(), f"{name}, {mode}, {size} px: {int(different.sum())} tokens differ"
            ties[name, mode] = int(different.sum())
            torch.testing.assert_close(functions["decode"](tokens), image, rtol=0, atol=1e-4)
            tasks[name, f"encode {mode}"] = partial(functions["encode"], pixels)
            tasks[name, f"decode {mode}"] = partial(functions["decode"], tokens)
    times = timed_rounds(tasks, rounds, device)
    return [
        {
            "size": size,
            "mode": what.split()[1],
            "task": what.split()[0],
            "library": name,
            "tokens": tokens.numel(),
            "ties_decided_otherwise": ties[name, what.split()[1]],
            "images_per_second": 1e3 * len(pixels) / min(times[name, what]),
            "speedup": speedup(times[name, what], times[THEIRS, what]),
        }
        for name, what in tasks
    ]


@torch.no_grad()
def peak_growth(name: str, sizes: list[int]) -> dict[str, float]:
    """MiB by which this process's peak grows over one call, `{"32 encode": ...}`. Run it in its own process."""
    found = {}
    for task, function in build("cpu")[0][name].items():
        for size in sizes:
            pixels, shape = make_inputs(size, "cpu")
            argument = pixels if task == "encode" else torch.zeros(shape, dtype=torch.long)
            function(argument[:1, ..., :16, :16])
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is in use now
            before = peak_memory()
            function(argument)
            found[f"{size} {task}"] = peak_memory() - before
    return found


def memory_of(name: str, sizes: list[int]) -> dict[str, float]:
    """Runs `peak_growth` in a new process whose allocator returns freed memory to the system."""
    command = [sys.executable, __file__, "--memory", name, "--sizes", *map(str, sizes)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def table(rows: list[dict[str, Any]], caption: str) -> str:
    """Markdown table of the results, with a row for each size, mode and task."""
    lines = [
        caption,
        "",
        f"| image | mode | task | {OURS}, images/s | {THEIRS}, images/s | ratio | {OURS}, MiB | {THEIRS}, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_task: dict[tuple, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_task.setdefault((row["size"], row["mode"], row["task"]), {})[row["library"]] = row
    for (size, mode, task), pair in by_task.items():
        ours, theirs = (pair[name]["images_per_second"] for name in (OURS, THEIRS))
        memory = [f"{pair[name]['memory_mib']:.0f}" if "memory_mib" in pair[name] else "" for name in (OURS, THEIRS)]
        lines.append(
            f"| {size} px | {mode} | {task} | {ours:.1f} | {theirs:.1f} | {pair[OURS]['speedup']:.2f}x "
            f"| {memory[0]} | {memory[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    parser.add_argument("--eager_only", action="store_true")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(peak_growth(options.memory, options.sizes)))
        return

    can_compile = options.device == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++")))
    compiled = can_compile and not options.eager_only
    caption = (
        f"Best of {options.rounds} rounds, ratio: median of the rounds, {name_of(options.device)}, "
        f"torch {torch.__version__}, "
        f"{platform.machine()}; batches of {PIXELS:,} pixels, at least two images, float32. Memory: growth of the "
        "process's peak over one eager call."
    )
    if not compiled:
        caption += f" No compiled rows: {'not asked for' if can_compile else 'there is no C++ compiler'}."
    eager, margin = build(options.device)
    modes = {"eager": eager}
    if compiled:  # once for all sizes, because compiling takes longer than everything else
        modes["compiled"] = {
            name: {task: torch.compile(function, dynamic=True) for task, function in functions.items()}
            for name, functions in build(options.device)[0].items()
        }
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        rows += measure(modes, margin, size, options.rounds, options.device)
    memory = {name: memory_of(name, options.sizes) for name in (OURS, THEIRS)} if options.device == "cpu" else {}
    for row in rows:
        if memory and row["mode"] == "eager":
            row["memory_mib"] = memory[row["library"]][f"{row['size']} {row['task']}"]
    compared = [row for row in rows if row["task"] == "encode" and (row["library"], row["mode"]) != (THEIRS, "eager")]
    ties, tokens = (sum(row[key] for row in compared) for key in ("ties_decided_otherwise", "tokens"))
    caption += f" Tokens equal those of diffusers, eager, but for {ties} of {tokens:,} that are ties in float32."
    text = table(rows, caption)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "tokenize_speed.md").write_text(text + "\n")
    (options.output_dir / "tokenize_speed.json").write_text(
        json.dumps({"caption": caption, "config": CONFIG, "rows": rows}, indent=1)
    )
    print(text)


if __name__ == "__main__":
    main()
