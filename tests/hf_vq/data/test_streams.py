"""Streams in parts: who reads which file, each image once an epoch, and going on exactly at a place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import create_repo, upload_folder

from hf_vq.data.sources import load_images
from hf_vq.data.streams import Reading, RowFlow, StreamOrder, StreamParts, StreamPlace

from ...hub_server import HubServer


class Counted:
    """A stream of files, which counts the rows that are read of each."""

    def __init__(self, lengths: list[int]) -> None:
        self.read: Counter[int] = Counter()
        self.parts = StreamParts(
            datasets.IterableDataset.from_generator(self._rows, gen_kwargs={"files": list(enumerate(lengths))})
        )
        self.first = [sum(lengths[:number]) for number in range(len(lengths))]

    def _rows(self, files: list[tuple[int, int]]) -> Iterator[dict[str, int]]:
        for file, length in files:
            for row in range(length):
                self.read[file] += 1
                yield {"row": self.first[file] + row}


def take(flow: RowFlow, count: int) -> list[int]:
    """The next rows of a flow."""
    return [found.row["row"] for found in islice(flow, count)]


@pytest.mark.parametrize("buffer", [0, 4, 50])
def test_each_row_comes_once_in_an_epoch(buffer: int) -> None:
    """Of one reader, over three epochs; with a buffer each epoch has another order, without one that of the files."""
    flow = iter(RowFlow(Counted([7, 2, 5]).parts, Reading(buffer=buffer)))

    epochs = [[found.row["row"] for found in islice(flow, 14)] for _ in range(3)]

    assert all(sorted(epoch) == list(range(14)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == (3 if buffer else 1)


@pytest.mark.parametrize("units", [2, 3, 4, 7])
@pytest.mark.parametrize("buffer", [0, 4])
def test_a_file_is_read_by_one_unit_in_an_epoch(units: int, buffer: int) -> None:
    """However many files and units there are, even more units than files; nobody reads what another one reads."""
    files = [4, 3, 6, 2, 5]
    seen: Counter[tuple[int, int]] = Counter()
    for unit in range(units):
        counted = Counted(files)
        flow = RowFlow(counted.parts, Reading(unit, units, buffer=buffer), end=0)
        flow.end = flow.first_turn(12)
        rows = [(found.epoch, found.row["row"]) for found in flow]
        assert sum(counted.read.values()) == len(rows)
        assert rows == sorted(rows, key=lambda row: row[0])  # an epoch is over before the next one begins
        seen.update(rows)

    assert seen == Counter({(epoch, row): 1 for epoch in range(12) for row in range(20)})


@pytest.mark.parametrize("buffer", [0, 3, 8, 100])
def test_a_flow_goes_on_wherever_it_stopped(buffer: int) -> None:
    """From the place after any row on, the rest is the same, and what is read again is less than two blocks."""
    files, reading = [7, 2, 5, 9], Reading(1, 2, seed=5, buffer=buffer)
    straight = take(RowFlow(Counted(files).parts, reading), 60)

    for stop in range(1, 40):
        first = RowFlow(Counted(files).parts, reading)
        take(first, stop)
        place = StreamPlace(**first.place.to_dict())
        assert take(RowFlow(Counted(files).parts, reading, place), 15) == straight[stop : stop + 15]


def test_a_block_is_all_that_is_held() -> None:
    """Rows are read while others are given: no more than a buffer of them is ahead, and the 32 that come at once."""
    counted = Counted([1000])
    flow = iter(RowFlow(counted.parts, Reading(buffer=50)))

    for given in range(1, 900):
        next(flow)
        assert sum(counted.read.values()) - given <= 50 + 32


def test_an_empty_stream_is_an_error() -> None:
    """Files without rows are passed over; if there are no others, that is said."""
    assert take(RowFlow(Counted([0, 2, 0]).parts, Reading()), 5) == [0, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="stream is empty"):
        take(RowFlow(Counted([0, 0]).parts, Reading()), 1)


def test_more_units_than_files_share_the_rows_of_an_epoch() -> None:
    """In a single pass, as over held-out data, no process is left without any."""
    seen = []
    for rank in range(5):
        rows = [found.row["row"] for found in StreamOrder(Counted([6, 5]).parts, 0, 0, rank, 5).rows_of_epoch()]
        assert rows
        seen += rows

    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_parquet_files_are_read_by_row_groups(place: str, tmp_path: Path, hub: HubServer) -> None:
    """Their lengths are known from the files' ends, and reading one reads nothing else; of the Hub's as well."""
    rows = [{"image": {"bytes": b"%d" % number, "path": None}} for number in range(12)]
    for number, first in enumerate((0, 7)):
        table = pa.Table.from_pylist(rows[first : first + 7 - 2 * number])
        pq.write_table(table, tmp_path / f"train-{number}.parquet", row_group_size=3)

    if place == "hub":
        create_repo("alice/pictures", repo_type="dataset")
        upload_folder(repo_id="alice/pictures", repo_type="dataset", folder_path=tmp_path)
    name = "alice/pictures" if place == "hub" else str(tmp_path)
    parts = StreamParts(load_images(name, streaming=True))

    expected: Any = [3, 3, 1, 3, 2] if hasattr(datasets.IterableDataset, "reshard") else [7, 5]
    assert parts.rows == expected and parts.num_rows == 12
    assert [row["image"]["bytes"] for row in parts.read(len(parts) - 1)] == [
        b"%d" % number for number in range(12 - expected[-1], 12)
    ]
    assert [[row["image"]["bytes"] for row in parts.read(number)] for number in range(len(parts))] == [
        [b"%d" % row for row in range(sum(expected[:number]), sum(expected[: number + 1]))]
        for number in range(len(expected))
    ]
