"""Which data a step sees, on each process: a pure function of the seed, so that a run can enter it at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from hf_vq.training.arguments import BaseTrainingArguments
from hf_vq.utils.processes import sum_over_processes

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = dict[str, Tensor]


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

    def permutation(self, epoch: int) -> list[int]:
        """The order of one epoch, the same on every process."""
        # Not seed + epoch: the second epoch of one seed would be the first one of the next.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(self.num_samples, generator=generator).tolist()

    def epoch_of(self, batch: int) -> int:
        """The epoch in which a batch begins."""
        return (self.first + batch * self.batch_size * self.world_size) // self.num_samples

    def batches_of_epoch(self, epoch: int, start: int = 0) -> list[list[int]]:
        """This process's batches that begin in `epoch`, without those before number `start`; maybe none."""
        whole = self.batch_size * self.world_size
        first = max(start, -((self.first - epoch * self.num_samples) // whole))
        end = -((self.first - (epoch + 1) * self.num_samples) // whole)
        permutations: dict[int, list[int]] = {}
        batches = []
        for batch in range(first, end):
            indices = []
            for position in range(self.batch_size):
                # Dealt out like cards: the order of samples over all processes does not depend on their number.
                place = self.first + batch * whole + position * self.world_size + self.rank
                past, place = divmod(place, self.num_samples)
                if past not in permutations:
                    permutations[past] = self.permutation(past)
                indices.append(permutations[past][place])
            batches.append(indices)
        return batches


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
        self.stream_epoch = 0
        self.stream_state: dict[str, Any] | None = None
        if self.num_images == 0:
            raise ValueError("The training set is empty: there is nothing to train on.")

    def batches(self, step: int) -> Iterator[Batch]:
        """The micro batches after `step` optimizer steps, without end; a stream goes on at its place instead."""
        args = self.args
        if self.num_images is None:
            if self.stream_state is not None:
                self.dataset.load_state_dict(self.stream_state)
            for epoch, batch in stream_batches(self.dataset, args.train_batch_size, self.stream_epoch):
                self.stream_epoch = epoch
                yield batch
            return
        order = DataOrder(
            self.num_images, args.train_batch_size, args.seed, self.rank, self.world_size, self.place.position
        )
        start = (step - self.place.step) * args.gradient_accumulation_steps
        yield from training_batches(self.dataset, order, start, args.dataloader_num_workers)

    def count_readable(self, accelerator: Accelerator) -> None:
        """Sets `num_readable`, the images without those that a process could not read so far; a collective."""
        if self.num_images is not None and hasattr(self.dataset, "bad_rows"):
            found = sum_over_processes(self.dataset.bad_rows().to(torch.int32), accelerator)
            self.num_readable = self.num_images - int((found > 0).sum())

    def epoch(self, step: int) -> float:
        """Epochs that all processes have seen after `step` optimizer steps; of a stream, the one it is in."""
        if self.num_images is None:
            return float(self.stream_epoch)
        return self.place.after(step, self.images_per_step).position / self.num_images

    def images_seen(self, step: int) -> int:
        """Images that all processes have seen after `step` optimizer steps, repeated ones counted again."""
        return self.place.after(step, self.images_per_step).images

    def state_dict(self) -> dict[str, Any]:
        """This process's place in a stream; a map-style data set has none, since the step says it."""
        has_place = self.num_images is None and hasattr(self.dataset, "state_dict")
        return {"stream": self.dataset.state_dict() if has_place else None, "stream_epoch": self.stream_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.stream_state, self.stream_epoch = state["stream"], state["stream_epoch"]


def training_batches(dataset: Any, order: DataOrder, start: int, num_workers: int) -> Iterator[Batch]:
    """An endless iterator over the training batches of this process, beginning after `start` batches.

    Each epoch has a loader of its own. An epoch's augmentation is chosen by `dataset.set_epoch` before its workers
    start, and a batch that reaches into the next epoch still counts for the one it begins in.
    """
    epoch = order.epoch_of(start)
    while True:
        batches = order.batches_of_epoch(epoch, start)
        if batches:
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)
            yield from _loader(dataset, batches, num_workers)
        epoch += 1


def stream_batches(stream: Any, batch_size: int, epoch: int) -> Iterator[tuple[int, Batch]]:
    """An endless iterator over `(epoch, batch)` of a stream; its place after each is `stream.state_dict()`.

    The stream is read in this process and no sample is read ahead: only so is its place known.
    """
    items: list[dict[str, Any]] = []
    empty_passes = 0
    while True:
        if hasattr(stream, "set_epoch"):
            stream.set_epoch(epoch)
        empty_passes += 1
        for item in stream:
            empty_passes = 0
            items.append(item)
            if len(items) == batch_size:
                yield epoch, collate(items)
                items = []
        if empty_passes == 2:  # once is no error: a checkpoint can lie at the very end of an epoch
            raise ValueError("The training stream is empty: there is nothing to train on.")
        epoch += 1


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


def collate(items: Sequence[dict[str, Any] | None]) -> Batch:
    """Makes a batch of items, without those that are None; it is empty if all are.

    It has the fields that every item has, so a row without a label costs only its label.
    """
    found = [item for item in items if item is not None]
    names = [name for name in found[0] if all(item.get(name) is not None for item in found)] if found else []
    return default_collate([{name: item[name] for name in names} for item in found]) if found else {}


def is_stream(dataset: Any) -> bool:
    """Whether a data set is read from front to back, and not by index."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


def _loader(dataset: Any, batches: list[list[int]], num_workers: int) -> DataLoader[Batch]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: drawing the workers' seed from the global one would change what comes after a resume.
        generator=torch.Generator().manual_seed(0),
    )
