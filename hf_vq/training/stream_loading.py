"""Batches of a stream without end, and the place in the stream, which checkpoints keep."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, default_collate

from hf_vq.utils.extras import require

logger = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]


def collate(items: Sequence[dict[str, Any] | None]) -> Batch:
    """Makes a batch of items, without those that are None; it is empty if all are.

    It has the fields that every item has, so a row without a label costs only its label.
    """
    found = [item for item in items if item is not None]
    names = [name for name in found[0] if all(item.get(name) is not None for item in found)] if found else []
    return default_collate([{name: item[name] for name in names} for item in found]) if found else {}


class StreamLoader:
    """The batches of this process's part of a stream.

    A stream with a method `endless`, as ours have, is read by workers, each of which reads files of its own and tells
    its place with every batch. Another one is read in this process, no sample ahead: only so is its place known.

    Args:
        stream: The stream. Its place is `stream.state_dict()`, if it has that method.
        batch_size: Samples of a batch.
        num_workers: Reading processes; 0 reads in this one.

    Attributes:
        epoch: The epoch that the stream is in; of several workers, the one that the slowest is in.
    """

    def __init__(self, stream: Any, batch_size: int, num_workers: int) -> None:
        self._stream, self._batch_size, self._num_workers = stream, batch_size, num_workers
        self._loader: Any = None
        self.epoch = 0
        if num_workers and not hasattr(stream, "endless"):
            logger.warning("The stream is read in the training process: its class has no method `endless`.")
            self._num_workers = 0
        if self._num_workers:
            require("train", "torchdata")

    def state_dict(self) -> dict[str, Any] | None:
        """The place in the stream, of each worker; None if the stream cannot tell it."""
        if not hasattr(self._stream, "state_dict"):
            return None
        if not self._num_workers:
            return self._stream.state_dict()
        assert self._loader is not None
        return {"epoch": self.epoch, "workers": self._num_workers, "loader": self._loader.state_dict()}

    def batches(self, epoch: int, state: dict[str, Any] | None) -> Iterator[Batch]:
        """The batches from a place on, or else from the beginning of an epoch.

        Args:
            epoch: The epoch.
            state: What `state_dict` returned.
        """
        self.epoch = epoch
        if not hasattr(self._stream, "endless"):
            if state is not None:
                self._stream.load_state_dict(state)
            for found, batch in stream_batches(self._stream, self._batch_size, epoch):
                self.epoch = found
                yield batch
            return
        from_workers = (state or {}).get("workers", 0)
        if state is not None and from_workers != self._num_workers:
            logger.warning(
                "The stream was read by %d workers a process, now by %d, which share the files out in another way: "
                "epoch %d begins anew, and images of it come once more.",
                from_workers,
                self._num_workers,
                state["epoch"] if "epoch" in state else epoch,
            )
            self.epoch, state = state.get("epoch", epoch), None
        batches = _EndlessBatches(self._stream, self._batch_size)
        if state is None:
            self._stream.load_state_dict({"epoch": self.epoch})
        elif not self._num_workers:
            self._stream.load_state_dict(state)
        if not self._num_workers:
            for found, batch in batches:
                self.epoch = found
                yield batch
            return
        from torchdata.stateful_dataloader import StatefulDataLoader

        self._loader = StatefulDataLoader(
            batches,
            batch_size=None,
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: drawing the workers' seed from the global one would change what comes after a resume.
            generator=torch.Generator().manual_seed(0),
        )
        if state is not None:
            self._loader.load_state_dict(state["loader"])
        latest: deque[int] = deque(maxlen=self._num_workers)
        for found, batch in self._loader:
            latest.append(found)
            self.epoch = min(latest)
            yield batch


class _EndlessBatches(IterableDataset):
    """The batches of an endless stream, each with the epoch of its last sample."""

    def __init__(self, stream: Any, batch_size: int) -> None:
        self._stream, self._batch_size = stream, batch_size

    def state_dict(self) -> dict[str, Any]:
        """The stream's, between two batches."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the stream into a state."""
        self._stream.load_state_dict(state)

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        items: list[dict[str, Any]] = []
        for item in self._stream.endless():
            items.append(item)
            if len(items) == self._batch_size:
                yield self._stream.state_dict()["epoch"], collate(items)
                items = []


def stream_batches(stream: Any, batch_size: int, epoch: int) -> Iterator[tuple[int, Batch]]:
    """An endless iterator over `(epoch, batch)` of a stream that gives one epoch at a time.

    The stream is read in this process and no sample is read ahead, so that its place is `stream.state_dict()`.
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
