"""Which data a step sees, on each process: a pure function of the seed, so that a run can enter it at any batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hf_vq.training.base_arguments import BaseTrainingArguments
from hf_vq.training.stream_loading import Batch, StreamLoader, collate


class DataOrder:
    """Which samples stand in which batch of one process.

    One shuffled epoch follows the other, and batches are cut from that endless stream. So no sample is dropped, no
    batch is short, a data set smaller than a batch fills it with several epochs, and a place in the data is one
    number: the samples taken.

    Args:
        num_samples: Length of the data set.
        batch_size: Samples per process and batch.
        seed: Seed of the shuffling.
        rank: This process.
        world_size: Number of processes.
        first: Place of the first sample of batch 0.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, first: int = 0
    ) -> None:
        if num_samples < 1:
            raise ValueError("The training set is empty: there is nothing to train on.")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.first = first
        self._mine: dict[int, Tensor] = {}  # this process's part of the order of an epoch, and of the next one

    def permutation(self, epoch: int) -> Tensor:
        """The order of one epoch, the same on every process, int32 (num_samples,); int64 for 2**31 samples or more."""
        # Not seed + epoch: the second epoch of one seed would be the first one of the next.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        dtype = torch.int32 if self.num_samples < 2**31 else torch.int64  # the numbers are the same
        return torch.randperm(self.num_samples, generator=generator, dtype=dtype)

    def epoch_of(self, batch: int) -> int:
        """The epoch in which a batch begins."""
        return (self.first + batch * self.batch_size * self.world_size) // self.num_samples

    def batches_of_epoch(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """This process's batches that begin in `epoch`, without those before number `start`; maybe none.

        What is kept of an epoch's order is the part of this process, 4 bytes for a sample.
        """
        whole = self.batch_size * self.world_size
        first = max(start, -((self.first - epoch * self.num_samples) // whole))
        end = -((self.first - (epoch + 1) * self.num_samples) // whole)
        self._mine = {other: part for other, part in self._mine.items() if other >= epoch}
        for batch in range(first, end):
            # Dealt out like cards: the order of samples over all processes does not depend on their number.
            place = self.first + batch * whole + self.rank
            indices: list[int] = []
            while len(indices) < self.batch_size:
                past, inside = divmod(place, self.num_samples)
                offset = (self.rank + self.first - past * self.num_samples) % self.world_size
                if past not in self._mine:
                    self._mine[past] = self.permutation(past)[offset :: self.world_size].clone()
                found = self._mine[past][inside // self.world_size :][: self.batch_size - len(indices)].tolist()
                indices += found
                place += len(found) * self.world_size
            yield indices


@dataclass(frozen=True)
class Place:
    """Where a run was when its steps got the size that they have, by a new batch size for example.

    Attributes:
        step: The steps taken by then.
        images: The images that all processes had seen.
        position: The samples taken of the data, as `DataOrder` counts them. Another data set begins at 0.
    """

    step: int = 0
    images: int = 0
    position: int = 0

    def after(self, step: int, images_per_step: int) -> Place:
        """The place after `step` steps of a run that was here and took steps of one size since."""
        taken = (step - self.step) * images_per_step
        return Place(step, self.images + taken, self.position + taken)


class TrainingData:
    """The training data of one process, from any step on.

    Args:
        dataset: Map-style, or a stream.
        args: The settings: batch sizes, seed and workers.
        rank: This process.
        world_size: Number of processes.

    Raises:
        ValueError: A map-style data set is empty.
    """

    def __init__(self, dataset: Any, args: BaseTrainingArguments, rank: int, world_size: int) -> None:
        self.dataset = dataset
        self.args = args
        self.rank = rank
        self.world_size = world_size
        self.num_images = None if is_stream(dataset) else len(dataset)
        self.num_readable = self.num_images
        self.images_per_step = args.images_per_step * world_size
        self.place = Place()
        self.stream_loader: StreamLoader | None = None
        self.stream_epoch = 0
        self.stream_state: dict[str, Any] | None = None
        if self.num_images == 0:
            raise ValueError("The training set is empty: there is nothing to train on.")

    def batches(self, step: int) -> Iterator[Batch]:
        """The micro batches after `step` optimizer steps, without end; a stream goes on at its place instead."""
        args = self.args
        if self.num_images is None:
            self.stream_loader = StreamLoader(self.dataset, args.train_batch_size, args.dataloader_num_workers)
            yield from self.stream_loader.batches(self.stream_epoch, self.stream_state)
            return
        order = DataOrder(
            self.num_images, args.train_batch_size, args.seed, self.rank, self.world_size, self.place.position
        )
        start = (step - self.place.step) * args.gradient_accumulation_steps
        yield from training_batches(self.dataset, order, start, args.dataloader_num_workers)

    def count_readable(self) -> None:
        """Sets `num_readable`, the images without those that a process could not read so far; a collective."""
        if self.num_images is not None and hasattr(self.dataset, "bad_rows"):
            found = gather_object(torch.nonzero(self.dataset.bad_rows()).flatten().tolist())
            self.num_readable = self.num_images - len(set(found))

    def epoch(self, step: int) -> float:
        """Epochs that all processes have seen after `step` optimizer steps.

        Of a stream that does not say how many images it has, the one that this process is in.
        """
        if self.num_images is None:
            length = getattr(self.dataset, "num_images", None)
            if length:
                return self.place.after(step, self.images_per_step).position / length
            return float(self.stream_epoch if self.stream_loader is None else self.stream_loader.epoch)
        return self.place.after(step, self.images_per_step).position / self.num_images

    def images_seen(self, step: int) -> int:
        """Images that all processes have seen after `step` optimizer steps, repeated ones counted again."""
        return self.place.after(step, self.images_per_step).images

    def state_dict(self) -> dict[str, Any]:
        """This process's place in a stream; a map-style data set has none, since the step says it."""
        if self.stream_loader is None:
            return {"stream": self.stream_state, "stream_epoch": self.stream_epoch}
        return {"stream": self.stream_loader.state_dict(), "stream_epoch": self.stream_loader.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.stream_state, self.stream_epoch = state["stream"], state["stream_epoch"]


def training_batches(dataset: Any, order: DataOrder, start: int, num_workers: int) -> Iterator[Batch]:
    """An endless iterator over the training batches of this process, beginning after `start` batches.

    Workers last, and each batch tells them its epoch. A batch that reaches into the next epoch still counts for the
    one it begins in.
    """
    yield from _loader(_AtEpoch(dataset), _EpochBatches(order, start), num_workers)


class _EpochBatches:
    """The numbers of each batch behind the number of its epoch, without end."""

    def __init__(self, order: DataOrder, start: int) -> None:
        self._order = order
        self._start = start

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self._order.epoch_of(self._start)
        while True:
            for batch in self._order.batches_of_epoch(epoch, self._start):
                yield [epoch, *batch]
            epoch += 1


class _AtEpoch(Dataset):
    """The items of a data set, by numbers that stand behind the number of their epoch."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._epoch: int | None = None

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        epoch, *indices = numbers
        if hasattr(self._dataset, "items_of_epoch"):
            return self._dataset.items_of_epoch(epoch, indices)
        if epoch != self._epoch and hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        self._epoch = epoch
        if hasattr(self._dataset, "__getitems__"):
            return self._dataset.__getitems__(indices)
        return [self._dataset[index] for index in indices]


def evaluation_batches(
    dataset: Any, batch_size: int, limit: int | None = None, rank: int = 0, world_size: int = 1, num_workers: int = 0
) -> Iterator[Batch]:
    """One pass over this process's part of the held-out data, in order; the last batch may be short.

    An image that cannot be read is left out; none takes its place.

    Args:
        dataset: Map-style; or an iterable, of which every process reads its own part.
        batch_size: Samples per process and batch.
        limit: Use only so many samples, counted over all processes: evenly spaced ones, of an iterable the first.
        rank: This process.
        world_size: Number of processes.
        num_workers: Reading processes of a map-style data set.
    """
    if not is_stream(dataset):
        # Evenly spaced: many data sets are sorted, by class for one.
        count = len(dataset) if limit is None else min(limit, len(dataset))
        mine = [number * len(dataset) // count for number in range(rank, count, world_size)]
        batches = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
        if hasattr(dataset, "readable_item"):
            dataset = _Readable(dataset)
        yield from (batch for batch in _loader(dataset, batches, num_workers) if batch)
        return
    share = None if limit is None else (limit - rank + world_size - 1) // world_size
    items: list[dict[str, Any]] = []
    for count, item in enumerate(dataset):
        if count == share:
            break
        items.append(item)
        if len(items) == batch_size:
            yield collate(items)
            items = []
    if items:
        yield collate(items)


class _Readable(Dataset):
    """The items of a data set, and None in place of those that it says cannot be read."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        return self._dataset.readable_item(index)


def is_stream(dataset: Any) -> bool:
    """Whether a data set is read from front to back, and not by index."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


def _loader(dataset: Any, batches: Iterable[list[int]], num_workers: int) -> DataLoader[Batch]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: drawing the workers' seed from the global one would change what comes after a resume.
        generator=torch.Generator().manual_seed(0),
    )
