"""Time and memory of the quantizer beside other libraries and the bare matrix product, alternating in one run.

    make bench-quantizer

Encode is a forward pass in eval mode without gradients. Train is a forward and a backward pass. The table gives the
best of the rounds, because other work on the machine can only add time. Memory is the growth of a new process's peak
over one encode.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timing import timed_rounds
from torch import nn

from hf_vq import VectorQuant

SHAPES = [(16384, 32, 1024), (8192, 256, 16384), (16384, 8, 16384)]  # vectors, dimension, codes
OURS = "hf_vq"
RESULTS = Path(__file__).parent / "results"


def ours(dim: int, num_codes: int) -> nn.Module:
    return VectorQuant(dim, num_codes, dim=-1)


def vector_quantize_pytorch(dim: int, num_codes: int) -> nn.Module:
    from vector_quantize_pytorch import VectorQuantize

    return VectorQuantize(
        dim=dim, codebook_size=num_codes, learnable_codebook=True, ema_update=False, rotation_trick=False
    )


class Diffusers(nn.Module):
    def __init__(self, dim: int, num_codes: int):
        super().__init__()
        from diffusers.models.autoencoders.vae import VectorQuantizer

        self.layer = VectorQuantizer(num_codes, dim, beta=0.25, legacy=False)

    def forward(self, z: torch.Tensor) -> tuple:  # the layer takes (B, C, H, W)
        return self.layer(z.transpose(1, 2)[..., None])


LIBRARIES: dict[str, Callable[[int, int], nn.Module]] = {
    OURS: ours,
    "vector-quantize-pytorch": vector_quantize_pytorch,
    "diffusers": Diffusers,
}


def loss_of(result: tuple) -> torch.Tensor:
    """A scalar that depends on both the quantized tensor and the library's own loss."""
    quantized, *others = result
    for other in others:
        if hasattr(other, "loss"):
            return quantized.sum() + other.loss
        if isinstance(other, torch.Tensor) and other.numel() == 1 and other.is_floating_point():
            return quantized.sum() + other.sum()
    raise ValueError("no loss among the results")


def measure(num_vectors: int, dim: int, num_codes: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Milliseconds of each library, `{name: {"encode": ..., "train": ...}}`, and of the bare product."""
    torch.manual_seed(0)
    z = torch.randn(1, num_vectors, dim, device=device)
    codes = torch.randn(num_codes, dim, device=device)
    layers = {name: make(dim, num_codes).to(device) for name, make in LIBRARIES.items()}

    def encode(layer: nn.Module) -> None:
        with torch.no_grad():
            layer.eval()(z)

    def train(layer: nn.Module) -> None:
        loss_of(layer.train()(z.detach().requires_grad_())).backward()
        layer.zero_grad(set_to_none=True)

    tasks: dict[tuple[str, str], Callable[[], object]] = {("bare product", "encode"): lambda: z[0] @ codes.T}
    for name, layer in layers.items():
        tasks[name, "encode"] = partial(encode, layer)
        tasks[name, "train"] = partial(train, layer)
    best: dict[str, dict[str, float]] = {name: {} for name, _ in tasks}
    for (name, what), times in timed_rounds(tasks, rounds, device).items():
        best[name][what] = min(times)
    return best


def peak_growth(name: str, num_vectors: int, dim: int, num_codes: int) -> float:
    """MiB by which this process's peak grows over one encode. Run it in its own process."""
    layer = LIBRARIES[name](dim, num_codes).eval()
    z = torch.randn(1, num_vectors, dim)
    with torch.no_grad():
        layer(z[:, :64])
        before = peak_memory()
        layer(z)
    return peak_memory() - before


def peak_memory() -> float:
    """The peak memory of this process in MiB.

    `resource` would not do, because a process inherits that peak from the one that started it.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def name_of(device: str) -> str:
    """The device's name for a table's caption."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        name, *shape = options.memory
        print(peak_growth(name, *map(int, shape)))
        return

    device_name = name_of(options.device)
    lines = [
        f"Best of {options.rounds} rounds, {device_name}, torch {torch.__version__}, {platform.machine()}. "
        "Milliseconds; in brackets the ratio to the bare product `z @ codes.T`.",
        "",
        "| vectors, dimension, codes | library | encode | forward + backward | peak memory of encode, MiB |",
        "|---|---|---|---|---|",
    ]
    records = []
    for shape in SHAPES:
        times = measure(*shape, options.rounds, options.device)
        bare = times.pop("bare product")["encode"]
        lines.append(f"| {shape} | bare product | {bare:.1f} | | |")
        for name, row in times.items():
            memory = float("nan")
            if options.device == "cpu":
                command = [sys.executable, __file__, "--memory", name, *map(str, shape)]
                memory = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            lines.append(
                f"| | {name} | {row['encode']:.1f} ({row['encode'] / bare:.2f}x) | "
                f"{row['train']:.1f} ({row['train'] / row['encode']:.2f}x encode) | {memory:.0f} |"
            )
            records.append({"shape": shape, "library": name, "bare_ms": bare, **row, "memory_mib": memory})
        print("\n".join(lines[-1 - len(times) :]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quantizer_speed.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "quantizer_speed.json").write_text(json.dumps({"device": device_name, "rows": records}, indent=1))
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
