"""Training on streams: workers read, checkpoints keep the place of each, nothing is lost or seen twice."""

from __future__ import annotations

import io
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from hf_vq.data.images import ImageStream
from hf_vq.training.stream_loading import StreamLoader

workers = pytest.mark.parametrize("workers", [0, 2])


def need_loader(workers: int) -> None:
    """Reading processes need torchdata."""
    if workers:
        pytest.importorskip("torchdata")


def stream(length: int = 40, files: int = 7, rank: int = 0, world_size: int = 1, buffer: int = 6) -> ImageStream:
    """A stream of images whose labels are their numbers."""
    rows = []
    for number in range(length):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (6 * number % 256, number, 0)).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": number})
    source = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=files)
    return ImageStream(source, 16, random_flip=True, shuffle_buffer=buffer, rank=rank, world_size=world_size)


def labels(loader: StreamLoader, count: int, state: Any = None) -> list[int]:
    """The labels in the next batches."""
    return [int(label) for batch in islice(loader.batches(0, state), count) for label in batch["label"]]


@workers
def test_a_resumed_stream_loses_nothing_and_repeats_nothing(workers: int) -> None:
    """Wherever it is stopped; the state is plain numbers, not the images that are shuffled."""
    need_loader(workers)
    straight = labels(StreamLoader(stream(), 4, workers), 30)

    for stop in (1, 4, 9):
        first = StreamLoader(stream(), 4, workers)
        batches = first.batches(0, None)
        for _ in range(stop):
            next(batches)
        state = first.state_dict()
        assert len(json.dumps(state)) < 2000
        again = labels(StreamLoader(stream(), 4, workers), 30 - stop, json.loads(json.dumps(state)))
        assert again == straight[4 * stop :]

    if not workers:
        assert [Counter(straight[40 * epoch :][:40]) for epoch in range(3)] == [Counter(range(40))] * 3
    counts = Counter(straight)
    assert set(counts) == set(range(40)) and set(counts.values()) <= {2, 3, 4}


@workers
def test_all_processes_take_the_same_number_of_steps(workers: int) -> None:
    """Uneven files, more processes times workers than files: each process gets full batches, and epochs stay close."""
    need_loader(workers)
    seen: Counter[int] = Counter()
    for rank in range(3):
        found = labels(StreamLoader(stream(30, 4, rank, 3), 5, workers), 24)
        assert len(found) == 120
        seen.update(found)

    assert set(seen) == set(range(30)) and max(seen.values()) - min(seen.values()) <= 4  # of 12 epochs


@workers
def test_a_run_on_a_stream_resumes_to_the_bit(
    workers: int, make_trainer: Any, runs: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped between two checkpoints and continued, it comes to the weights of a run that was not."""
    need_loader(workers)
    options = {"dataloader_num_workers": workers, "save_steps": 3}
    make_trainer("straight", train=stream(), **options).train()
    stopped = make_trainer("resumed", train=stream(), **options)
    step = stopped.train_step

    def stopping(batches: Any) -> Any:
        if stopped.step == 4:
            raise KeyboardInterrupt
        return step(batches)

    stopped.train_step = stopping
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    make_trainer("resumed", train=stream(), resume_from_checkpoint="latest", **options).train()

    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    assert "anew" not in caplog.text


def test_another_number_of_workers_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """It shares the files out in another way: the epoch begins anew."""
    pytest.importorskip("torchdata")
    first = StreamLoader(stream(), 4, 0)
    list(islice(first.batches(0, None), 13))
    assert first.epoch == 1

    second = StreamLoader(stream(), 4, 2)
    labels(second, 1, first.state_dict())

    assert "read by 0 workers a process, now by 2" in caplog.text and "epoch 1 begins anew" in caplog.text


def test_a_place_of_version_0_1_0_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """It did not keep what was shuffled, so its epoch begins anew."""
    state = {"source": {"examples_iterable": {}, "epoch": 2}, "position": 17}

    found = labels(StreamLoader(stream(), 4, 0), 10, state)

    assert "version 0.1.0" in caplog.text and "epoch 2 begins anew" in caplog.text
    assert sorted(found) == list(range(40))


def test_another_stream_is_read_in_this_process(caplog: pytest.LogCaptureFixture) -> None:
    """A stream that gives one epoch at a time has no place of each worker, and the flag is not ignored in silence."""

    class Numbers(IterableDataset[dict[str, torch.Tensor]]):
        def __iter__(self) -> Any:
            return iter([{"label": torch.tensor(number)} for number in range(3)])

    assert labels(StreamLoader(Numbers(), 2, 4), 3) == [0, 1, 2, 0, 1, 2]
    assert "read in the training process" in caplog.text
