"""How low the error can go at these bits, and where it sits (network, budget and images as in quantizers.py).

    python benchmarks/quantizers_bound.py --photos FOLDER

"bound" trains the network without quantization, for each dimension of the vectors. K-means then makes codes of the
vectors of all training images. The decoder alone adapts to these codes, for as many steps. At last, all of it goes on
together with the full method, again for as many steps. So the last two columns have two and three times the budget of
a row of the table. "where" trains full method and plain VQ with 3-d codes, as the table does, and splits their error
by photograph and by spatial frequency.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import autoencoder
import numpy as np
import scipy.fft
import torch
from quantizers import FLOOR, RESULTS, build, images
from quantizers_candidates import PLAIN, Candidate
from run_records import holds, load_records, mean_deviation, save_records

from hf_vq import RECOMMENDED_QUANTIZER, VQModel, no_vq
from hf_vq.modeling.kmeans_vq import kmeans

SPLIT = {
    FLOOR: Candidate(PLAIN, 3),
    "plain VQ": Candidate(PLAIN, 3),
    "full method": Candidate(RECOMMENDED_QUANTIZER, 3),
}
BANDS = {"mean": (0, 1), "1 to 3": (1, 4), "4 to 8": (4, 9), "9 to 16": (9, 17), "above 16": (17, 63)}


@torch.no_grad()
def vectors_of(model: VQModel, pixels: torch.Tensor) -> torch.Tensor:
    """The encoder's vectors, `(N, h, w, embed_dim)`, in evaluation mode."""
    model.eval()
    found = [model.encode(batch).last_hidden_state for batch in pixels.split(256)]
    return torch.cat(found).movedim(1, -1)


def adapt_decoder(model: VQModel, pixels: torch.Tensor, steps: int, seed: int) -> None:
    """Trains the decoder alone, on the codes that the frozen encoder and codebook give."""
    with torch.no_grad():
        tokens = torch.cat([model.eval().encode(batch).image_tokens for batch in pixels.split(256)])
    parts = [model.post_quant_conv, model.decoder]
    weights = [weight for part in parts for weight in part.train().parameters()]
    optimizer = torch.optim.AdamW(weights, lr=3e-4, betas=(0.9, 0.95), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (32,), generator=order)
        loss = (model.decode(tokens[chosen]).decoded_pixel_values - pixels[chosen]).square().mean() / 4
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def bound(key: dict[str, Any], train: torch.Tensor, test: torch.Tensor) -> dict[str, Any]:
    """One row: the error after each of the four stages."""
    seed, steps, num_codes = key["seed"], key["steps"], key["num_codes"]

    def error(model: VQModel) -> float:
        return autoencoder.evaluate(model, test, num_codes)["mse"]

    model = build(Candidate(PLAIN, key["embed_dim"]), num_codes, seed)
    with no_vq(model):
        autoencoder.train(model, train, commitment_weight=0.0, steps=steps, seed=seed)
        found = {"no quantization": error(model)}
        vectors = vectors_of(model, train).flatten(0, -2)
    torch.manual_seed(seed)
    chosen = torch.randperm(len(vectors))[: 256 * num_codes]
    codebook: Any = model.quantize.codebook
    with torch.no_grad():
        codebook.weight.copy_(kmeans(vectors[chosen], num_codes))
    found["codes put in"] = error(model)
    adapt_decoder(model, train, steps, seed)
    found["decoder adapted"] = error(model)
    fields = {**RECOMMENDED_QUANTIZER, "kmeans_init": False}
    together = build(Candidate(fields, key["embed_dim"]), num_codes, seed)
    together.load_state_dict(model.state_dict())
    autoencoder.train(together, train, commitment_weight=1.0, steps=steps, seed=seed)
    return {**key, **found, "all together": error(together)}


@torch.no_grad()
def differences(model: VQModel, pixels: torch.Tensor) -> torch.Tensor:
    """Errors of all pixels in [0, 1]."""
    model.eval()
    found = [model(batch).decoded_pixel_values.clamp(-1, 1) - batch for batch in pixels.split(128)]
    return torch.cat(found) / 2


def error_by_band(difference: torch.Tensor) -> dict[str, float]:
    """The squared error in bands of the cosine transform of whole images; they add up to the mean squared error."""
    side = difference.shape[-1]
    power = np.square(scipy.fft.dctn(difference.numpy(), axes=(-2, -1), norm="ortho")).mean((0, 1)) / side**2
    frequency = np.add.outer(np.arange(side), np.arange(side))
    return {name: float(power[(frequency >= low) & (frequency < high)].sum()) for name, (low, high) in BANDS.items()}


def where(key: dict[str, Any], train: torch.Tensor, test: dict[str, torch.Tensor]) -> dict[str, Any]:
    """One row: the error of a kind by frequency and by photograph."""
    kind, seed = key["kind"], key["seed"]
    model = build(SPLIT[kind], key["num_codes"], seed)
    model.quantize.enabled = kind != FLOOR
    autoencoder.train(model, train, commitment_weight=1.0, steps=key["steps"], seed=seed)
    errors = {name: differences(model, tiles) for name, tiles in test.items()}
    every = torch.cat(list(errors.values()))
    photographs = {name: float(error.square().mean()) for name, error in errors.items()}
    return {**key, "mse": float(every.square().mean()), "bands": error_by_band(every), "photographs": photographs}


def table(records: list[dict[str, Any]]) -> str:
    """Both parts as Markdown, errors x 1e-3, mean and deviation over the seeds."""

    def cells(rows: list[dict[str, Any]], names: list[str]) -> str:
        return " | ".join(mean_deviation([1e3 * row[name] for row in rows], 2) for name in names)

    stages = ["no quantization", "codes put in", "decoder adapted", "all together"]
    lines = ["| codes | dimensions | " + " | ".join(stages) + " | seeds |", "|---" * 7 + "|"]
    bounds = [record for record in records if record["part"] == "bound"]
    for codes, dim in dict.fromkeys((record["num_codes"], record["embed_dim"]) for record in bounds):
        rows = [record for record in bounds if (record["num_codes"], record["embed_dim"]) == (codes, dim)]
        lines.append(f"| {codes:,} | {dim} | {cells(rows, stages)} | {', '.join(str(row['seed']) for row in rows)} |")
    for part in ("bands", "photographs"):
        split = [{**record, **record[part]} for record in records if record["part"] == "where"]
        names = list(dict.fromkeys(name for record in records if part in record for name in record[part]))
        lines += ["", "| | " + " | ".join(names) + " | all |", "|---" * (len(names) + 2) + "|"]
        for kind in dict.fromkeys(record["kind"] for record in split):
            lines.append(f"| {kind} | {cells([row for row in split if row['kind'] == kind], [*names, 'mse'])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--codes", nargs="*", type=int, default=[1024])
    parser.add_argument("--dims", nargs="*", type=int, default=[2, 3, 4, 6, 8])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = RESULTS / "quantizers_bound.json"
    records = load_records(path)
    train, test = images("photographs", options.photos, "table")
    names = sorted(found for found in options.photos.resolve().iterdir())[::3]
    by_photograph = {name.stem: autoencoder._tiles((str(name),), autoencoder.SIZE) for name in names}
    shared = {"steps": options.steps}
    for seed in options.seeds:
        for num_codes in options.codes:
            keys = [{"part": "bound", "embed_dim": dim} for dim in options.dims]
            keys += [{"part": "where", "kind": kind} for kind in SPLIT]
            for key in ({**key, "num_codes": num_codes, "seed": seed, **shared} for key in keys):
                if holds(records, key):
                    continue
                records.append(bound(key, train, test) if key["part"] == "bound" else where(key, train, by_photograph))
                print(json.dumps(records[-1]), flush=True)
                save_records(path, {**autoencoder.PROTOCOL, "bands": BANDS}, records, table(records))
    print(table(records))


if __name__ == "__main__":
    main()
