"""The order of the data: every sample once per epoch, the same stream from any entry, shared out over processes."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import IterableDataset

from hf_vq.data.images import ImageStream
from hf_vq.training.order import DataOrder, evaluation_batches, training_batches
from hf_vq.training.stream_loading import stream_batches


def flat(order: DataOrder, epochs: int) -> list[int]:
    """All indices of the first epochs' batches."""
    return [index for epoch in range(epochs) for batch in order.batches_of_epoch(epoch) for index in batch]


@pytest.mark.parametrize(("length", "batch_size"), [(10, 4), (12, 4), (3, 8), (1, 2)])
def test_every_sample_comes_once_per_epoch(length: int, batch_size: int) -> None:
    """The stream is a chain of permutations: no sample is dropped, also when a batch is larger than the data set."""
    stream = flat(DataOrder(length, batch_size, seed=3), 12)

    for start in range(0, len(stream) - length + 1, length):
        assert sorted(stream[start : start + length]) == list(range(length))


def test_batches_are_full_and_shuffled_by_seed_and_epoch() -> None:
    """All batches have the same size; another epoch or seed is another order."""
    order = DataOrder(100, 7, seed=0)

    assert {len(batch) for epoch in range(5) for batch in order.batches_of_epoch(epoch)} == {7}
    assert not torch.equal(order.permutation(0), order.permutation(1))
    assert not torch.equal(order.permutation(1), DataOrder(100, 7, seed=1).permutation(0))


def test_the_order_is_what_it_always_was() -> None:
    """Runs go on over versions, so that an epoch's order and its batches stay, bit for bit."""
    expected = [
        [[2, 3, 1], [6, 1, 2], [5, 0, 6], [2, 1, 5]],
        [[0, 4, 5], [3, 4, 0], [3, 4, 5], [1, 2, 4]],
    ]
    for rank in range(2):
        order = DataOrder(7, 3, seed=3, rank=rank, world_size=2, first=1)
        assert [batch for epoch in range(3) for batch in order.batches_of_epoch(epoch)] == expected[rank]


def test_an_order_takes_four_bytes_for_a_sample_of_the_process() -> None:
    """A process keeps its own part of an epoch's order; batches are made one after the other."""
    order = DataOrder(1_000_000, 8, seed=0, rank=1, world_size=4)
    batches = order.batches_of_epoch(0)
    assert len(next(batches)) == 8

    kept = [part.untyped_storage().nbytes() for part in order._mine.values()]
    assert kept == [1_000_000]


class Places(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Says which process read a sample, and in which epoch."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        """Remembers the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"process": torch.tensor(os.getpid()), "epoch": torch.tensor(self.epoch), "index": torch.tensor(index)}


def test_workers_last_over_epochs() -> None:
    """The same processes read every epoch, and each batch is read as its own epoch says."""
    found = list(islice(training_batches(Places(), DataOrder(8, 2, seed=0), 0, 2), 12))

    assert len({int(process) for batch in found for process in batch["process"]}) == 2
    assert [batch["epoch"].unique().tolist() for batch in found] == [[number // 4] for number in range(12)]


def test_processes_share_the_stream_of_one(images: Any) -> None:
    """Two processes with half the batch see, together, the batches of one process."""
    whole = DataOrder(10, 4, seed=0)
    halves = [DataOrder(10, 2, seed=0, rank=rank, world_size=2) for rank in range(2)]

    for epoch in range(4):
        mine, *theirs = (order.batches_of_epoch(epoch) for order in (whole, *halves))
        assert [sorted(batch) for batch in mine] == [sorted(a + b) for a, b in zip(*theirs, strict=True)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_can_enter_the_data_anywhere(images: Any, workers: int) -> None:
    """The batches after number k are the same whether or not the first k were read, augmentation included."""
    order = DataOrder(10, 4, seed=0)
    straight = list(islice(training_batches(images(10), order, 0, 0), 8))

    for start in (1, 4, 6):
        entered = list(islice(training_batches(images(10), order, start, workers), 2))
        for expected, found in zip(straight[start : start + 2], entered, strict=True):
            assert torch.equal(expected["pixel_values"], found["pixel_values"])


def test_reading_data_draws_no_global_random_numbers(images: Any) -> None:
    """The random numbers of the training itself do not depend on how often the data was opened."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)

    next(training_batches(images(10), DataOrder(10, 4, seed=0), 0, 0))
    list(evaluation_batches(images(10), 4))

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("limit", [None, 7, 1])
def test_evaluation_reads_each_sample_once_over_all_processes(images: Any, limit: int | None) -> None:
    """Processes share the held-out data without padding; the limit counts all of them."""
    seen = [
        int(index)
        for rank in range(3)
        for batch in evaluation_batches(images(10), 2, limit, rank, 3)
        for index in batch["index"]
    ]

    expected = {None: list(range(10)), 7: [0, 1, 2, 4, 5, 7, 8], 1: [0]}  # evenly spaced
    assert sorted(seen) == expected[limit]


class Counting(IterableDataset[dict[str, torch.Tensor]]):
    """A stream of numbers."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        """Remembers the epoch."""
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for number in range(self.length):
            yield {"pixel_values": torch.tensor(float(number))}


def test_a_stream_goes_on_over_the_end_of_an_epoch() -> None:
    """Batches of a stream are full across epochs, and the stream hears of each new epoch."""
    stream = Counting(5)

    found = list(islice(stream_batches(stream, 4, epoch=2), 3))

    assert [epoch for epoch, _ in found] == [2, 3, 4]
    assert [batch["pixel_values"].tolist() for _, batch in found] == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]
    assert stream.epochs == [2, 3, 4]


def test_empty_data_is_an_error() -> None:
    """Nothing to train on is said at once, for data sets and for streams."""
    with pytest.raises(ValueError, match="training set is empty"):
        DataOrder(0, 4, seed=0)
    with pytest.raises(ValueError, match="training stream is empty"):
        next(stream_batches(Counting(0), 4, epoch=0))


def test_a_stream_can_be_resumed_at_the_very_end_of_an_epoch() -> None:
    """A pass that was already over when the run stopped is no empty stream; the next epoch follows."""

    def stream() -> ImageStream:
        rows = [{"image": {"bytes": _png(value), "path": None}} for value in range(6)]
        return ImageStream(Dataset.from_list(rows).to_iterable_dataset(), 8)

    first = stream()
    batches = stream_batches(first, 3, epoch=0)
    next(batches), next(batches)
    state = first.state_dict()
    expected = [next(batches)[1]["pixel_values"] for _ in range(2)]

    resumed = stream()
    resumed.load_state_dict(state)
    again = stream_batches(resumed, 3, epoch=0)
    for pixel_values in expected:
        epoch, batch = next(again)
        assert epoch == 1
        assert torch.equal(batch["pixel_values"], pixel_values)


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("missing", [{}, {"label": None}])
def test_a_row_without_a_label_costs_only_the_label(missing: dict[str, None]) -> None:
    """Wherever it stands in a batch, of a map-style data set, of its held-out part, and of a stream."""
    for place in range(3):
        rows: list[dict[str, Any]] = [{"pixels": torch.full((1,), row), "label": row} for row in range(3)]
        rows[place] = {"pixels": torch.full((1,), place), **missing}
        order = DataOrder(3, 3, seed=0)
        found = [
            next(training_batches(rows, order, 0, 0)),
            *evaluation_batches(rows, 3),
            next(stream_batches(rows, 3, 0))[1],
            *evaluation_batches(iter(rows), 2),
        ]
        for batch in found[:3]:
            assert set(batch) == {"pixels"} and sorted(batch["pixels"].flatten().tolist()) == [0, 1, 2]
        assert [batch["pixels"].flatten().tolist() for batch in found[3:]] == [[0, 1], [2]]
        assert ["label" in batch for batch in found[3:]] == [place == 2, place != 2]
