"""Which weight alpha of the commitment loss suits `RECOMMENDED_QUANTIZER` in a loop of one's own.

    python benchmarks/commitment_weight.py
    python benchmarks/commitment_weight.py --alphas 1 --seeds 0 1 2

A small convolutional autoencoder, a `VectorQuant` layer and one optimizer, as the README shows them, without the
package's models and trainers. It trains on the shipped emoji, pixels in [-1, 1], with `mse + alpha * out.loss`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from autoencoder import emoji
from run_records import holds, load_records, mean_deviation, save_records
from torch import nn

from hf_vq import RECOMMENDED_QUANTIZER, VectorQuant, no_vq

RESULTS = Path(__file__).parent / "results"
ALPHAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
CODE_DIMS = (8, 64)
NUM_CODES = 512
PROTOCOL = {
    "data": "the shipped emoji, as they are split, pixels in [-1, 1]",
    "network": "3 convolutions to 8 x 8 vectors, 3 back, 32 channels, ReLU; 512 codes",
    "loss": "mean squared error + alpha * out.loss",
    "optimizer": "Adam 1e-3, batches of 64",
}


def autoencoder(code_dim: int) -> tuple[nn.Module, nn.Module]:
    """Encoder from `(batch, 3, 32, 32)` to `(batch, code_dim, 8, 8)`, and decoder back."""
    encoder = nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, code_dim, 3, 1, 1)
    )
    decoder = nn.Sequential(
        nn.Conv2d(code_dim, 32, 3, 1, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 32, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 3, 4, 2, 1),
    )
    return encoder, decoder


def run(alpha: float, code_dim: int, seed: int, steps: int) -> dict[str, Any]:
    """Trains once. Returns the held-out error (pixels in [0, 1]) and the use of the codes."""
    train, test = emoji()
    torch.manual_seed(seed)
    encoder, decoder = autoencoder(code_dim)
    layer = VectorQuant(code_dim, NUM_CODES, **RECOMMENDED_QUANTIZER)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *layer.parameters()], lr=1e-3)
    for _ in range(steps):
        images = train[torch.randint(len(train), (64,))]
        z_q, out = layer(encoder(images))
        loss = F.mse_loss(decoder(z_q), images) + alpha * out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layer.eval()
    with torch.no_grad():
        z = encoder(test)
        z_q, out = layer(z)
        with no_vq(layer):
            unquantized = F.mse_loss(decoder(layer(z)[0]).clamp(-1, 1), test)
        mse = F.mse_loss(decoder(z_q).clamp(-1, 1), test)
    return {
        "alpha": alpha,
        "code_dim": code_dim,
        "seed": seed,
        "steps": steps,
        "mse": mse.item() / 4,
        "mse_without_quantization": unquantized.item() / 4,
        "commitment": out.loss.item(),
        "size_of_z": z.square().mean().sqrt().item(),
        "usage": out.usage.item(),
    }


def table(records: list[dict[str, Any]], steps: int) -> str:
    """Markdown table of the mean over the seeds."""
    lines = [
        f"`commitment_weight.py`: emoji, a plain loop of {steps} steps, 512 codes; held-out images.",
        "",
        "| alpha | dimensions | MSE x1e-3 | codes used | size of z | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for code_dim in CODE_DIMS:
        for alpha in sorted({record["alpha"] for record in records}):
            shown = [r for r in records if (r["alpha"], r["code_dim"], r["steps"]) == (alpha, code_dim, steps)]
            if shown:
                cells = [
                    f"{alpha:g}",
                    str(code_dim),
                    mean_deviation([1e3 * r["mse"] for r in shown], 2),
                    mean_deviation([100 * r["usage"] for r in shown], 1) + "%",
                    mean_deviation([r["size_of_z"] for r in shown], 2),
                    ", ".join(str(r["seed"]) for r in shown),
                ]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--alphas", nargs="*", type=float, default=list(ALPHAS))
    parser.add_argument("--code_dims", nargs="*", type=int, default=list(CODE_DIMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "commitment_weight.json"
    records = load_records(path)
    for seed in options.seeds:
        for code_dim in options.code_dims:
            for alpha in options.alphas:
                key = {"alpha": alpha, "code_dim": code_dim, "seed": seed, "steps": options.steps}
                if not holds(records, key):
                    records.append(run(alpha, code_dim, seed, options.steps))
                    print(json.dumps(records[-1]), flush=True)
                    save_records(path, PROTOCOL, records, table(records, options.steps))
    print(table(records, options.steps))


if __name__ == "__main__":
    main()
