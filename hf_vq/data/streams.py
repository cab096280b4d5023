"""Streams in parts: which process and worker reads which files, in what order, and from where it goes on."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import datasets
import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import IterableDataset, get_worker_info

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 32  # that are taken of a stream, undecoded


class StreamParts:
    """The parts of a stream, each of which can be read by itself: its files, or the row groups of parquet files.

    Args:
        stream: What ``load_images(..., streaming=True)`` returns, or another stream of `datasets`, not yet shuffled.

    Attributes:
        rows: Number of rows of each part; None if it is not known before they are read.
    """

    def __init__(self, stream: datasets.IterableDataset) -> None:
        self._stream = stream
        splits = dict(stream.info.splits or {})
        info = splits.get(str(stream.split)) or (next(iter(splits.values())) if len(splits) == 1 else None)
        lengths = getattr(info, "shard_lengths", None)
        self.rows: list[int] | None = list(lengths) if lengths and len(lengths) == len(self) else None
        self._firsts: np.ndarray | None = None

    def __len__(self) -> int:
        return self._stream.num_shards

    @property
    def num_rows(self) -> int | None:
        """Rows of all parts; None if they are not known."""
        return None if self.rows is None else sum(self.rows)

    def first_row(self, number: int) -> int:
        """The number of a part's first row in the whole stream; 0 if it is not known."""
        if self.rows is None:
            return 0
        if self._firsts is None:
            self._firsts = np.cumsum([0, *self.rows])
        return int(self._firsts[number])

    def count(self, state: PartialState) -> None:
        """Counts the rows of all parts, each of which one process reads; a collective."""
        mine = range(state.process_index, len(self), state.num_processes)
        found = dict(gather_object([(number, sum(1 for _ in self.read(number))) for number in mine]))
        self.rows = [found[number] for number in range(len(self))]

    def rows_from(self, first: int) -> Iterator[tuple[int, Any]]:
        """The rows of the whole stream from number `first` on, and their numbers; no part before it is opened.

        Raises:
            ValueError: A part has another number of rows than was counted.
        """
        assert self.rows is not None
        begin = 0
        for part, count in enumerate(self.rows):
            start, number = max(0, first - begin), 0
            if start < count:
                for number, row in enumerate(self.read(part, start), start + 1):
                    if number <= count:
                        yield begin + number - 1, row
                if number != count:
                    raise ValueError(f"Part {part} of the stream has {number} rows where {count} were counted before.")
            begin += count

    def read(self, number: int, start: int = 0) -> Iterator[Any]:
        """The rows of a part from number `start` on. No other part is opened."""
        part = self._stream.shard(num_shards=len(self), index=number)
        # Not iter(part), which a worker of a DataLoader would share out among all workers once more. In batches, since
        # taking rows one by one takes `datasets` ten times as long.
        batches = part.iter(batch_size=_ROWS_AT_ONCE)
        rows = (
            dict(zip(batch, values, strict=True)) for batch in batches for values in zip(*batch.values(), strict=True)
        )
        yield from islice(rows, start, None)


@dataclass(frozen=True)
class Reading:
    """How one of several units, the workers of all processes, reads the parts of a stream.

    The parts of an epoch, and then those of the next one, are dealt out to the units one after the other like cards,
    without end. So no unit ever waits for another, each part is read by one of them in each epoch, and units with
    small files go on to the next epoch sooner.

    Args:
        unit: Number of the unit.
        units: How many there are.
        seed: Seed of the order, the same for all units.
        buffer: Rows that are shuffled together; 0 keeps the order of parts and rows.
    """

    unit: int = 0
    units: int = 1
    seed: int = 0
    buffer: int = 0


@dataclass(frozen=True)
class StreamPlace:
    """Where a unit is in its stream, after the last row that it gave.

    Attributes:
        part: How many parts it had been dealt before the one in which the block of rows begins that it is giving.
        row: The row of that part with which the block begins.
        given: Rows of the block that were given.
    """

    part: int = 0
    row: int = 0
    given: int = 0

    def to_dict(self) -> dict[str, int]:
        """The place in plain numbers."""
        return asdict(self)


class StreamRow(NamedTuple):
    """A row of a stream, and where it stands: its epoch, its part, its number there, and its part's turn."""

    epoch: int
    part: int
    number: int
    turn: int
    row: Any


class RowFlow:
    """The rows of a unit without end, from a place on.

    With a buffer, a unit's rows are cut into blocks of that length, and an epoch's last one is shorter. A block is
    shuffled by the seed and its place, and given while the next one is read. So it takes no more memory than one
    block, and its place is a few numbers: a resumed run reads the block once more.

    Args:
        parts: The parts of the stream.
        reading: What the unit reads.
        place: Where to begin.
        end: Stop before this turn; by default never.
    """

    def __init__(
        self, parts: StreamParts, reading: Reading, place: StreamPlace | None = None, end: int | None = None
    ) -> None:
        self.parts, self.reading, self.end = parts, reading, end
        self.place = place or StreamPlace()
        self._order: tuple[int, list[int]] = (-1, [])
        self._next: StreamRow | None = None  # read, but not yet in a block

    def first_turn(self, epoch: int) -> int:
        """How many parts the unit is dealt before an epoch begins."""
        return max(0, -((self.reading.unit - epoch * len(self.parts)) // self.reading.units))

    def __iter__(self) -> Iterator[StreamRow]:
        if not self.reading.buffer:
            # Each row is a block: the place is the number of the next row.
            for found in self._rows(self.place.part, self.place.row):
                self.place = StreamPlace(found.turn, found.number + 1)
                yield found
            return
        rows, skipped = self._rows(self.place.part, self.place.row), self.place.given
        ahead: deque[StreamRow] = deque()
        while True:
            while self._read_one(ahead, rows):
                pass
            if not ahead:
                return
            first, block = ahead[0], list(ahead)
            ahead.clear()
            begin = StreamPlace(first.turn, first.number)
            key = (self.reading.seed, self.reading.unit, first.epoch, first.part, first.number)
            for given, number in enumerate(np.random.default_rng(key).permutation(len(block)).tolist()):
                found, block[number] = block[number], first._replace(row=None)
                self._read_one(ahead, rows)
                if given < skipped:
                    continue
                self.place = replace(begin, given=given + 1)
                yield found
            skipped = 0

    def _read_one(self, ahead: deque[StreamRow], rows: Iterator[StreamRow]) -> bool:
        """Takes one more row into a block, unless it is full."""
        if self._next is None:
            self._next = next(rows, None)
        if self._next is None or len(ahead) == self.reading.buffer or (ahead and ahead[0].epoch != self._next.epoch):
            return False
        ahead.append(self._next)
        self._next = None
        return True

    def _rows(self, turn: int, start: int) -> Iterator[StreamRow]:
        """The rows in the order in which they are read."""
        empty = 0
        while turn != self.end:
            epoch, inside = divmod(self.reading.unit + turn * self.reading.units, len(self.parts))
            part, number = self._part(epoch, inside), start - 1
            for number, row in enumerate(self.parts.read(part, start), start):
                yield StreamRow(epoch, part, number, turn, row)
            empty = 0 if number >= 0 else empty + 1
            if empty > len(self.parts):
                raise ValueError("The training stream is empty: there is nothing to train on.")
            turn, start = turn + 1, 0

    def _part(self, epoch: int, inside: int) -> int:
        """Which part stands at a place of an epoch's order."""
        if not self.reading.buffer:
            # Moved on each time, so that a unit does not read the same parts in each epoch.
            return (inside + epoch * (self.reading.units > 1)) % len(self.parts)
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.reading.seed, epoch))
            self._order = (epoch, rng.permutation(len(self.parts)).tolist())
        return self._order[1][inside]


class StreamOrder:
    """The place of a process, or of a worker of its loader, in a stream that all processes share.

    Args:
        parts: The parts of the stream.
        seed: Seed of the order, the same on all processes.
        buffer: Rows that are shuffled together; 0 keeps the order.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, parts: StreamParts, seed: int, buffer: int, rank: int, world_size: int) -> None:
        self.parts, self.seed, self.buffer, self.rank, self.world_size = parts, seed, buffer, rank, world_size
        self.epoch = 0
        self._flow: RowFlow | None = None
        self._loaded: dict[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iterator."""
        self.epoch, self._flow = epoch, None

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the place after the last row given, and which of how many units this is."""
        reading = self._reading()
        place = self._start(reading) if self._flow is None else self._flow.place
        return {"epoch": self.epoch, "unit": reading.unit, "units": reading.units, **place.to_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iterator go on where the state says."""
        if "source" in state:  # of version 0.1.0
            epoch = int(state["source"]["epoch"])
            logger.warning(
                "The place in the stream was written by version 0.1.0, which did not keep what was shuffled: epoch %d "
                "begins anew, and its images come once more.",
                epoch,
            )
            state = {"epoch": epoch}
        self.epoch, self._loaded, self._flow = state["epoch"], state, None

    def rows_of_epoch(self) -> Iterator[StreamRow]:
        """This unit's rows of the epoch that was chosen, from its place on.

        Where there are more units than parts, several share the rows of a part.
        """
        reading, count = self._reading(), len(self.parts)
        share, sharing = divmod(reading.unit, count)[0], 1
        if reading.units > count:
            sharing = len(range(reading.unit % count, reading.units, count))
            reading = replace(reading, unit=reading.unit % count, units=count)
        else:
            share = 0
        flow = RowFlow(self.parts, reading, self._start(reading))
        flow.end = flow.first_turn(self.epoch + 1)
        self._flow = flow
        return (row for row in flow if row.number % sharing == share)

    def endless_rows(self) -> Iterator[StreamRow]:
        """This unit's rows without end, from its place on."""
        reading = self._reading()
        self._flow = RowFlow(self.parts, reading, self._start(reading))
        for row in self._flow:
            self.epoch = row.epoch
            yield row

    def _reading(self) -> Reading:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return Reading(self.rank * workers + number, self.world_size * workers, self.seed, self.buffer)

    def _start(self, reading: Reading) -> StreamPlace:
        """Where the loaded state says, or where the epoch begins."""
        state, begin = self._loaded, StreamPlace(RowFlow(self.parts, reading).first_turn(self.epoch))
        if state is None or state["epoch"] != self.epoch or "units" not in state:
            return begin
        if (state["unit"], state["units"]) == (reading.unit, reading.units):
            return StreamPlace(state["part"], state["row"], state["given"])
        logger.warning(
            "The stream was read by %d units (processes times workers), now there are %d: this one begins its epoch "
            "%d anew, and images of it come once more.",
            state["units"],
            reading.units,
            self.epoch,
        )
        return begin


class PartedStream(IterableDataset):
    """A data set of the rows of a stream, whose parts the processes and the workers of their loaders share out.

    An iterator gives one epoch, `endless` all that follow. `state_dict` holds the place of the process or worker that
    iterates, and a stream that loads it goes on with the next example, shuffled or not. A loader that asks its workers
    for their states, as `StatefulDataLoader` of torchdata does, so resumes exactly. A subclass makes examples of rows.

    Args:
        source: The stream.
        seed: Seed of shuffling, the same on all ranks.
        shuffle_buffer: Rows that are shuffled together, beside the order of the parts; 0 keeps the order.
        rank: Number of this process; each of ``world_size`` processes sees its own part of the data.
        world_size: Number of processes.
    """

    def __init__(
        self, source: datasets.IterableDataset, seed: int, shuffle_buffer: int, rank: int, world_size: int
    ) -> None:
        self.source = source
        self.parts = StreamParts(source)
        self.order = StreamOrder(self.parts, seed, shuffle_buffer, rank, world_size)

    @property
    def num_images(self) -> int | None:
        """Rows of the whole stream; None if they are not known before they are read."""
        return self.parts.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iterator; call it before that is made."""
        self.order.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream, after the last example given."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iterator of the state's epoch, or an endless one, start at its place."""
        self.order.load_state_dict(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._examples(self.order.rows_of_epoch())

    def endless(self) -> Iterator[dict[str, Any]]:
        """The examples of all epochs from the place on, one epoch after the other."""
        return self._examples(self.order.endless_rows())

    def _examples(self, rows: Iterator[StreamRow]) -> Iterator[dict[str, Any]]:
        raise NotImplementedError
