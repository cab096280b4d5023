"""Error and codebook use from 256 to 65,536 codes, in one autoencoder with one budget (see autoencoder.py).

    python benchmarks/large_codebooks.py
    python benchmarks/large_codebooks.py --part trials
    python benchmarks/large_codebooks.py --part table --sizes 16384 65536 --rows "full method" FSQ
    python benchmarks/large_codebooks.py --sizes 16384 --photos FOLDER

Network, batches, optimizer and photographs are those of quality.py, except for 32 channels, 600 steps and a learning
rate of 3e-3. Error and use of the codes are measured on photographs that did not train, and on strips left out of
those that trained. A code can be in use only if the images contain what it stands for, and only if there are many
vectors for each code. So all photographs are cut into overlapping tiles. "k-means" is the share that k-means on the
training vectors would use.

`trials` tries settings for half the steps, on photographs that `table` does not measure. A run that
results/large_codebooks.json already holds is not repeated; `--fresh` runs everything again. `--photos` takes your own
photographs and writes results/large_codebooks_photos.*. Every third of them does not train. Add `--fresh` for another
folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import autoencoder
import numpy as np
import PIL.Image
import torch
from foreign_quantizers import MAX_TREE_DIMENSIONS, ForeignQuantizer, NearestCode
from large_codebooks_candidates import FLOOR, FSQ_LEVELS, SIZES, Row, table, trials
from run_records import holds, load_records, mean_deviation, row_settings, save_records

from hf_vq import RECOMMENDED_QUANTIZER, VectorQuant, VQConfig, VQModel, no_vq
from hf_vq.modeling.kmeans_vq import kmeans
from hf_vq.plots.style import INK, legend_above, new_figure, picture, run_colors

RESULTS = Path(__file__).parent / "results"
STEPS = {"trials": 300, "table": 600}
LEARNING_RATE = 3e-3  # ten times that of quality.py, because there are fewer steps
CHANNELS = 32
STRIP = 64  # px; every fifth strip of the training photographs is held out
PHOTO_TILES = 2560
VECTORS_PER_CODE, MAX_STRIP_TILES = 160, 40960  # for the held-out strips
MAX_YARDSTICK = 16384  # with more codes, k-means on the training vectors takes minutes
KMEANS_ITERATIONS = 3
PARTS = {"trials": trials, "table": table}


def build(row: Row, num_codes: int, seed: int) -> VQModel:
    """The autoencoder with this row's quantizer."""
    torch.manual_seed(seed)
    config = VQConfig(
        architecture="sqvae",
        image_size=autoencoder.SIZE,
        base_channels=CHANNELS,
        num_codes=row.num_codes or num_codes,
        embed_dim=row.embed_dim,
        kmeans_init=False,
    )
    model = VQModel(config)
    if isinstance(row.quantizer, dict):
        model.quantize = VectorQuant(row.embed_dim, num_codes, **RECOMMENDED_QUANTIZER | row.quantizer)
    else:
        model.quantize = ForeignQuantizer(row.quantizer(), row.embed_dim, row.num_codes or num_codes)
    return model


def use_fast_search(model: VQModel) -> None:
    """Makes the search faster, with the same nearest codes.

    Our search serves layers of other libraries, and a tree serves codes of few dimensions.
    """
    layer = model.quantize
    is_slow = isinstance(layer, ForeignQuantizer) or layer.code_dim <= MAX_TREE_DIMENSIONS
    if layer.takes_nearest and is_slow:
        model.quantize = NearestCode(layer.get_codebook(), layer)


@torch.no_grad()
def use_kmeans(model: VQModel, tiles: torch.Tensor) -> None:
    """Sets the codes to the k-means centroids of the vectors of `tiles`."""
    model.eval()
    batches = (model.encode(batch).last_hidden_state for batch in tiles.split(128))
    vectors = torch.cat([batch.movedim(1, -1).flatten(0, -2) for batch in batches])
    torch.manual_seed(0)
    model.quantize = NearestCode(kmeans(vectors, model.quantize.num_codes, KMEANS_ITERATIONS))


@torch.no_grad()
def usage(model: VQModel, tiles: torch.Tensor, num_codes: int) -> float:
    """Share of the codes that the vectors of `tiles` use."""
    model.eval()
    return (
        len(torch.cat([model.encode(batch).image_tokens.unique() for batch in tiles.split(128)]).unique()) / num_codes
    )


def strips(names: tuple[str, ...], stride: int, held_out: bool, count: int | None = None) -> torch.Tensor:
    """Tiles `(N, 3, 32, 32)` inside every fifth strip of these photographs, or tiles that touch no such strip.

    Args:
        names: Paths, or names that scikit-image or scikit-learn ships.
        stride: Distance between tiles in px.
        held_out: Whether to take the tiles inside the strips.
        count: The most tiles to return, evenly from all photographs.
    """
    size = autoencoder.SIZE
    found = []
    picks = np.random.default_rng(0)
    for name in names:
        pixels = autoencoder.photo(name)
        left = np.arange(0, pixels.shape[1] - size + 1, stride)
        first, last = left // STRIP % 5 == 2, (left + size - 1) // STRIP % 5 == 2
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (size, size), (0, 1))[::stride]
        rows, columns = np.meshgrid(np.arange(len(windows)), left[first & last if held_out else ~(first | last)])
        places = np.stack([rows.ravel(), columns.ravel()])
        if count is not None:  # evenly from all photographs
            places = picks.permutation(places, axis=1)[:, : -(-count // len(names))]
        found.append(windows[places[0], places[1]].transpose(0, 2, 3, 1))
    return _shuffled(autoencoder._to_pixels(np.concatenate(found)))[:count]


def _shuffled(tiles: torch.Tensor) -> torch.Tensor:
    return tiles[torch.randperm(len(tiles), generator=torch.Generator().manual_seed(0))]


def own_split(photos: Path) -> tuple[list[Path], list[Path]]:
    """Splits the photographs of a folder: those that train, and every third, which does not."""
    paths = sorted(path.resolve() for path in photos.iterdir())
    return [path for index, path in enumerate(paths) if index % 3], paths[::3]


def images(part: str, num_codes: int, photos: Path | None = None) -> dict[str, torch.Tensor]:
    """Tiles to train on ("train"), of other photographs ("photographs"), and of the held-out strips ("strips")."""
    count = min(max(PHOTO_TILES, VECTORS_PER_CODE * num_codes // 64), MAX_STRIP_TILES)
    if photos is not None:  # there are enough photographs to hold out a third
        train_names, others = (tuple(str(path) for path in split) for split in own_split(photos))
        train, tiles = strips(train_names, 16, held_out=False), _shuffled(autoencoder._tiles(others, 17))[:count]
    else:
        train_names = autoencoder.TRAIN_PHOTOS + (autoencoder.VALIDATION_PHOTOS if part == "table" else ())
        others = autoencoder.TEST_PHOTOS if part == "table" else autoencoder.VALIDATION_PHOTOS
        train, tiles = strips(train_names, 8, held_out=False), _shuffled(autoencoder._tiles(others, 9))[:PHOTO_TILES]
    return {
        "train": train,
        "photographs": tiles,
        "strips": strips(train_names, 1, held_out=True, count=count),
    }


def run(key: dict[str, Any], row: Row, device: str, photos: Path | None) -> dict[str, Any]:
    """Trains and evaluates the row that a key names, and returns its record."""
    num_codes, seed, name = key["num_codes"], key["seed"], key["row"]
    tiles = {split: found.to(device) for split, found in images(key["part"], num_codes, photos).items()}
    model = build(row, num_codes, seed).to(device)  # type: ignore[arg-type]
    size = row.num_codes or num_codes
    with no_vq(model) if name == FLOOR else nullcontext():
        clock = autoencoder.train(
            model,
            tiles["train"],
            commitment_weight=row.commitment_weight,
            steps=key["steps"],
            learning_rate=LEARNING_RATE,
            seed=seed,
        )
        use_fast_search(model)
        metrics = autoencoder.evaluate(model, tiles["photographs"], size)
        metrics["strips_mse"] = autoencoder.evaluate(model, tiles["strips"][:PHOTO_TILES], size)["mse"]
    if name != FLOOR:
        tiles["train"] = tiles["train"][:MAX_STRIP_TILES]
        metrics["train_usage"] = usage(model, tiles["train"], size)
        metrics["strips_usage"] = usage(model, tiles["strips"], size)
        if row.yardstick and num_codes <= MAX_YARDSTICK:
            use_kmeans(model, tiles["train"][:PHOTO_TILES])
            metrics["kmeans_usage"] = usage(model, tiles["photographs"], size)
            metrics["kmeans_strips_usage"] = usage(model, tiles["strips"], size)
    vectors = {f"{split}_vectors": len(tiles[split]) * 64 for split in tiles}
    return {**key, **metrics, **vectors, "cpu_seconds": clock.cpu_seconds, "device": device}


def protocol(photos: Path | None) -> dict[str, Any]:
    """The settings behind the numbers of a file."""
    rows = {part: {size: make(size) for size in sorted(SIZES)} for part, make in PARTS.items()}
    data = {"table": autoencoder.SPLITS["photographs"], "trials": autoencoder.SPLITS["validation"]}
    data = {part: {"train": found["train"], "test": found["test"]} for part, found in data.items()}
    if photos is not None:
        train, test = own_split(photos)
        data = dict.fromkeys(data, {"train": [path.name for path in train], "test": [path.name for path in test]})
    return {
        **autoencoder.PROTOCOL,
        "network": f"SQ-VAE, {CHANNELS} channels, 32 px, 8 x 8 tokens",
        "optimizer": f"AdamW, one-cycle learning rate with a peak of {LEARNING_RATE:g}, betas 0.9 and 0.95, "
        "weight decay 1e-4",
        "data": data,
        "steps": STEPS,
        "full_method": RECOMMENDED_QUANTIZER,
        "foreign": "of vector-quantize-pytorch: EMA with k-means initialization, commitment 0.25 and replacement of "
        "codes with less than 2 vectors; SimVQ and FSQ with their defaults; LFQ with entropies of some of the vectors",
        "rows": {
            part: {size: {name: row_settings(row) for name, row in of_size.items()} for size, of_size in sizes.items()}
            for part, sizes in rows.items()
        },
    }


COLUMNS = {
    "train_usage": "used by training tiles",
    "strips_usage": "by held-out strips",
    "kmeans_strips_usage": "k-means",
    "usage": "by other photographs",
    "kmeans_usage": "k-means",
}


def cells(runs: list[dict[str, Any]]) -> list[str]:
    """The cells of a table's line, from the runs of one row."""

    def mean(key: str, scale: float, digits: int) -> str:
        values = [scale * run[key] for run in runs if key in run]
        if not values or (runs[0]["row"] == FLOOR and "mse" not in key):
            return ""
        return mean_deviation(values, digits)

    first = runs[0]
    shares = [mean(key, 100, 1) for key in COLUMNS]
    return [
        f"{first['num_codes']:,}",
        first["row"],
        mean("mse", 1e3, 2),
        mean("strips_mse", 1e3, 2),
        mean("perplexity", 1, 0),
        *(f"{share}%" if share else "" for share in shares),
        ", ".join(str(run["seed"]) for run in runs),
    ]


def tables(records: list[dict[str, Any]], photos: Path | None = None) -> str:
    """Markdown tables of both parts, with mean and deviation over the seeds."""
    of = f"{len(list(photos.iterdir()))} photographs, two thirds for training" if photos else "test photographs"
    titles = {"table": of, "trials": "settings, on the validation photographs"}
    columns = ["codes", "", "MSE x1e-3", "of strips", "perplexity", *COLUMNS.values(), "seeds"]
    lines = []

    def place(record: dict[str, Any]) -> tuple[int, int, int]:
        rows = list(PARTS[record["part"]](record["num_codes"]))
        return record["num_codes"], rows.index(record["row"]) if record["row"] in rows else len(rows), record["seed"]

    for part, steps in sorted({(record["part"], record["steps"]) for record in records}):
        shown: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for record in sorted(records, key=place):
            if (record["part"], record["steps"]) == (part, steps):
                shown.setdefault((record["num_codes"], record["row"]), []).append(record)
        lines += [
            f"`large_codebooks.py --part {part}`: {titles[part]}; {steps} steps of batch 32, {CHANNELS} channels. "
            "Vectors for each code that were measured, of training tiles, strips and other photographs: "
            f"{_densities(shown)}.",
            "",
            "| " + " | ".join(columns) + " |",
            "|---" * len(columns) + "|",
            *("| " + " | ".join(cells(runs)) + " |" for runs in shown.values()),
            "",
        ]
    return "\n".join(lines)


def _densities(shown: dict[tuple[int, str], list[dict[str, Any]]]) -> str:
    """Vectors for each code, for every size of the codebook."""
    of_sizes = {num_codes: runs[0] for (num_codes, row), runs in shown.items() if row != FLOOR}
    return "; ".join(
        f"{num_codes:,} codes: "
        + ", ".join(f"{run[f'{split}_vectors'] / num_codes:,.0f}" for split in ("train", "strips", "photographs"))
        for num_codes, run in of_sizes.items()
    )


LATER = "full method, later k-means replacement"


def draw(records: list[dict[str, Any]]) -> PIL.Image.Image:
    """Draws error, use by the held-out strips and perplexity against the number of codes, with mean and range."""
    lines: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for record in sorted(records, key=lambda record: record["num_codes"]):
        if "strips_usage" not in record:  # without quantization
            continue
        few, usual = FSQ_LEVELS[record["num_codes"]]
        names = {f"FSQ {few}": "FSQ, few dimensions", f"FSQ {usual}": "FSQ, usual levels"}
        name = LATER if "later" in record["row"] else names.get(record["row"], record["row"])
        lines.setdefault(name, {}).setdefault(record["num_codes"], []).append(record)
    last = lines.pop(LATER, None)
    colors = list(run_colors(len(lines) + 1)[1:])  # gray is for baselines
    if last is not None:  # drawn last, in the color of the first
        lines[LATER] = last
        colors.append(colors[0])
    figure, grid = new_figure(12, 4.2, columns=3)
    best = min(record["mse"] for line in lines.values() for runs in line.values() for record in runs)
    ours = max(record["mse"] for name in lines if "full" in name for runs in lines[name].values() for record in runs)
    panels: list[tuple[str, float, str, dict[str, Any]]] = [
        ("mse", 1e3, "MSE x1e-3, other photographs", {"ylim": (0.97e3 * best, 1.2e3 * ours)}),
        ("strips_usage", 1, "share of the codes used by held-out strips", {"ylim": (0, 1.02)}),
        ("perplexity", 1, "perplexity, other photographs", {"yscale": "log"}),
    ]
    for axes, (key, scale, label, limits) in zip(grid.flat, panels, strict=True):
        for color, (name, line) in zip(colors, lines.items(), strict=True):
            values = [[scale * record[key] for record in runs] for runs in line.values()]
            style = "o--" if name == LATER else "o-"
            means = [statistics.mean(runs) for runs in values]
            told = f"{name} (error above)" if key == "mse" and min(means) > limits["ylim"][1] else name
            axes.plot(list(line), means, style, color=color, lw=1.8, ms=4, label=told)
            axes.vlines(list(line), [min(runs) for runs in values], [max(runs) for runs in values], color=color, lw=1)
        axes.set(xscale="log", xticks=sorted(SIZES), **limits)
        axes.minorticks_off()
        axes.set_xticklabels([f"{size:,}" for size in sorted(SIZES)], fontsize=9)
        axes.yaxis.set_major_formatter("{x:,.6g}")  # a logarithmic scale sets its own formatter
        axes.set_title(label, fontsize=11, color=INK)
        axes.set_xlabel("codes")
    legend_above(figure, grid[0, 0], columns=4)
    return picture(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", nargs="*", default=["table"], choices=list(PARTS))
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES, metavar="K", choices=SIZES)
    parser.add_argument("--rows", nargs="*", default=[""], metavar="START", help="run rows whose names start so")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument(
        "--steps", type=int, help="default: " + ", ".join(f"{steps} for {part}" for part, steps in STEPS.items())
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="use the photographs of this folder")
    parser.add_argument("--fresh", action="store_true", help="delete the results of earlier runs first")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ("large_codebooks_photos.json" if options.photos else "large_codebooks.json")
    if options.fresh:
        path.unlink(missing_ok=True)
    records = load_records(path)
    facts = protocol(options.photos)
    for part, seed, num_codes in itertools.product(options.part, options.seeds, options.sizes):
        for name, row in PARTS[part](num_codes).items():
            steps = options.steps or STEPS[part]
            key = {"part": part, "num_codes": num_codes, "row": name, "seed": seed, "steps": steps}
            if not name.startswith(tuple(options.rows)) or holds(records, key):
                continue
            records.append(run(key, row, options.device, options.photos))
            print(json.dumps(records[-1]), flush=True)
            save_records(path, facts, records, tables(records, options.photos))
    save_records(path, facts, records, tables(records, options.photos))
    drawn = [r for r in records if r["part"] == "table" and r["steps"] == (options.steps or STEPS["table"])]
    if any("full" in record["row"] for record in drawn):
        draw(drawn).save(path.with_suffix(".png"))
    print(tables(records, options.photos))


if __name__ == "__main__":
    main()
