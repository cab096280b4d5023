"""The trainer beside a bare loop, what processes read, memory at the start, and compiled steps.

    make bench-scale

A run keeps the records of its parts in results/scale.json, so that parts can be run one by one (`--parts`).
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from run_records import load_records, save_records
from torch.utils.data import DataLoader

from hf_vq import TokenizerTrainer, TokenizerTrainingArguments, VQConfig, VQModel
from hf_vq.data.images import ImageDataset, ImageStream
from hf_vq.data.shard_files import with_lengths
from hf_vq.data.sources import load_images
from hf_vq.data.streams import Reading, RowFlow, StreamParts
from hf_vq.training.order import DataOrder

RESULTS = Path(__file__).parent / "results"
SIZES = {32: {"batch": 64, "images": 1024, "base_channels": 32}, 256: {"batch": 4, "images": 96, "base_channels": 16}}


def write_images(folder: Path, side: int, count: int, files: int = 8) -> None:
    """Parquet files of JPEGs of blobs, with four row groups each."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).resize((side + 8, side + 8), Image.Resampling.BICUBIC).save(
            content, "JPEG", quality=90
        )
        rows.append({"image": {"bytes": content.getvalue(), "path": None}})
    for number in range(files):
        part = datasets.Dataset.from_list(rows[number * count // files : (number + 1) * count // files])
        part.to_parquet(folder / f"train-{number:03}.parquet", batch_size=-(-len(part) // 4))


def make_model(side: int, seed: int = 0) -> VQModel:
    """A tokenizer with four positions along a side for each 16 pixels."""
    torch.manual_seed(seed)
    return VQModel(
        VQConfig(
            architecture="sqvae", image_size=side, base_channels=SIZES[side]["base_channels"], num_res_blocks=1,
            embed_dim=8, num_codes=256,
        )
    )  # fmt: skip


def make_trainer(side: int, dataset: Any, folder: Path, workers: int, **fields: Any) -> TokenizerTrainer:
    """A trainer with the settings of the bare loop."""
    args = TokenizerTrainingArguments(
        str(folder / "out"), train_batch_size=SIZES[side]["batch"], dataloader_num_workers=workers, use_cpu=True,
        disable_tqdm=True, lr_scheduler="constant", max_steps=10_000, **fields,
    )  # fmt: skip
    return TokenizerTrainer(make_model(side), args, dataset)


def trainer_steps(trainer: TokenizerTrainer) -> Iterator[None]:
    """Steps of a trainer, as its loop takes them."""
    batches = trainer.data.batches(0)
    trainer.networks.train()
    while True:
        values = trainer.train_step([next(batches)])
        trainer.step += 1
        trainer.window.add(values, trainer.data.images_per_step, 0.0)
        yield


def bare_steps(side: int, dataset: Any, workers: int) -> Iterator[None]:
    """Steps of a plain PyTorch loop: forward, backward, clip, AdamW, and the loss read at each 50th."""
    model = make_model(side).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=1e-4)
    is_stream = isinstance(dataset, ImageStream)
    step = 0
    while True:
        loader: Any = DataLoader(
            dataset, SIZES[side]["batch"], shuffle=None if is_stream else True, num_workers=workers, drop_last=True
        )
        for batch in loader:
            loss = model(batch["pixel_values"]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 50 == 0:
                loss.item()
            yield


def timed(tasks: dict[str, Callable[[], Iterator[None]]], steps: int, rounds: int, warm_up: int) -> dict[str, float]:
    """Milliseconds a step, the medians of rounds that the tasks take in turns, and that of the first two's ratios."""
    running = {name: task() for name, task in tasks.items()}
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for iterator in running.values():
        for _ in islice(iterator, warm_up):
            pass
    for _ in range(rounds):
        for name, iterator in running.items():
            began = time.perf_counter()
            for _ in islice(iterator, steps):
                pass
            times[name].append((time.perf_counter() - began) / steps * 1000)
    for iterator in running.values():
        iterator.close()  # type: ignore[attr-defined]
    first, second = list(times.values())[:2]
    ratio = statistics.median(mine / other for mine, other in zip(first, second, strict=True))
    return {name: statistics.median(values) for name, values in times.items()} | {"ratio": ratio}


def measure_training(side: int, streaming: bool, workers: int, steps: int, rounds: int) -> dict[str, Any]:
    """A trainer's step beside that of the bare loop, reading included, and the share of reading alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, side, SIZES[side]["images"])

        def dataset() -> Any:
            found = load_images(str(folder), streaming=streaming)
            return ImageStream(found, side, shuffle_buffer=256) if streaming else ImageDataset(found, side)

        def reading() -> Iterator[None]:
            for _ in iter(make_trainer(side, dataset(), folder, workers).data.batches(0)):
                yield

        tasks: dict[str, Callable[[], Iterator[None]]] = {
            "trainer": lambda: trainer_steps(make_trainer(side, dataset(), folder, workers)),
            "bare loop": lambda: bare_steps(side, dataset(), workers),
        }
        if not workers:
            tasks["reading alone"] = reading
        found = timed(tasks, steps, rounds, warm_up=3)
    return {"part": f"training-{side}", "data": "stream" if streaming else "map-style", "workers": workers, **found}


def measure_compiled(side: int, steps: int, rounds: int) -> dict[str, Any]:
    """A compiled step beside an eager one, on images that are read already."""
    rows = [Image.new("RGB", (side, side), (number % 256, 0, 0)) for number in range(SIZES[side]["batch"])]

    def task(compiled: bool) -> Iterator[None]:
        folder = Path(tempfile.gettempdir()) / f"compiled-{compiled}"
        return trainer_steps(make_trainer(side, ImageDataset(rows, side), folder, 0, torch_compile=compiled))

    tasks = {"compiled": lambda: task(True), "eager": lambda: task(False)}
    return {"part": "compiled", "size": side, **timed(tasks, steps, rounds, warm_up=4)}


class CountedStream:
    """A stream of rows of 1 KB in files of equal length, which counts what is read."""

    def __init__(self, files: int, rows: int) -> None:
        self.rows = self.bytes = 0
        self._length = rows
        stream = datasets.IterableDataset.from_generator(self._read, gen_kwargs={"files": list(range(files))})
        self.parts = StreamParts(with_lengths(stream, [rows] * files))

    def _read(self, files: list[int]) -> Iterator[dict[str, Any]]:
        for file in files:
            for number in range(self._length):
                self.rows, self.bytes = self.rows + 1, self.bytes + 1024
                yield {"image": bytes(1024), "number": file * self._length + number}


def measure_reading(processes: int) -> list[dict[str, Any]]:
    """What each process reads in an epoch of training on a stream, and in tokenizing it, of 64 files of 100 rows."""
    files, rows, shard = 64, 100, 500
    training, tokenizing = [], []
    for rank in range(processes):
        counted = CountedStream(files, rows)
        flow = RowFlow(counted.parts, Reading(rank, processes, buffer=100), end=0)
        flow.end = flow.first_turn(1)
        given = sum(1 for _ in flow)
        training.append((counted.rows, counted.bytes, given))
        counted = CountedStream(files, rows)
        shards = range(-(-files * rows // shard))
        mine = shards[len(shards) * rank // processes : len(shards) * (rank + 1) // processes]
        end = min(files * rows, mine.stop * shard)
        given = sum(1 for _ in islice(counted.parts.rows_from(mine.start * shard), end - mine.start * shard))
        tokenizing.append((counted.rows, counted.bytes, given))
    return [
        {
            "part": "reading",
            "work": work,
            "processes": processes,
            "rows of the busiest": max(found)[0],
            "bytes of the busiest": max(found)[1],
            "rows of all": sum(row[0] for row in found),
            "rows used": sum(row[2] for row in found),
        }
        for work, found in (("training", training), ("tokenizing", tokenizing))
    ]


def measure_memory(count: int = 1_000_000) -> list[dict[str, Any]]:
    """Bytes for a row of what a run on so many rows keeps, once for a process or once for a node."""
    order = DataOrder(count, 64, 0, 0, 8)
    next(order.batches_of_epoch(0))
    paths = [f"/data/imagenet/train/n{number % 1000:08}/n{number % 1000:08}_{number}.JPEG" for number in range(count)]
    table = datasets.Dataset.from_dict({"image": paths, "label": list(range(count))})
    sizes = {
        "order of an epoch while it is drawn": order.permutation(0).nbytes,
        "a process's part of it, of 8": sum(part.nbytes for part in order._mine.values()),
        "status of images (shared by workers)": count,
        "paths and labels of a folder": table.data.nbytes,
        "lengths of the row groups of a stream, 100 rows each": sys.getsizeof([0] * (count // 100))
        + 28 * count // 100,
    }
    return [{"part": "memory", "structure": name, "bytes a row": size / count} for name, size in sizes.items()]


def table(records: list[dict[str, Any]]) -> str:
    """All records as Markdown."""
    lines: list[str] = []
    for part in dict.fromkeys(record["part"] for record in records):
        rows = [
            {name: value for name, value in record.items() if name != "part"}
            for record in records
            if record["part"] == part
        ]
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines += [f"**{part}**", "", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
        for row in rows:
            cells = [row.get(name, "") for name in names]
            lines.append(
                "| " + " | ".join(f"{cell:,.3g}" if isinstance(cell, float) else f"{cell}" for cell in cells) + " |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parts = ["reading", "memory", "training-32", "training-256", "compiled"]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    # Whole epochs: a part of one would be read ahead, and a bare loop's workers would never start anew.
    parser.add_argument("--epochs", type=int, default=1, help="of a round")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    path = RESULTS / "scale.json"

    def steps(side: int) -> int:
        return options.epochs * SIZES[side]["images"] // SIZES[side]["batch"]

    datasets.disable_progress_bars()
    records = load_records(path)
    for part in options.parts:
        if part == "reading":
            new = [record for processes in (1, 2, 4, 8) for record in measure_reading(processes)]
        elif part == "memory":
            new = measure_memory()
        elif part == "compiled":
            new = [measure_compiled(32, steps(32), options.rounds)]
        else:
            side = int(part.split("-")[1])
            cases = [(streaming, workers) for streaming in (False, True) for workers in (0, 2)]
            new = []
            for case in cases:
                new.append(measure_training(side, *case, steps(side), options.rounds))
                print(new[-1], flush=True)
        records = [record for record in records if record["part"] != part] + new
        protocol = {"epochs": options.epochs, "rounds": options.rounds, "threads": torch.get_num_threads()}
        save_records(path, protocol | {"sizes": SIZES}, records, table(records))
    print(table(records))


if __name__ == "__main__":
    main()
