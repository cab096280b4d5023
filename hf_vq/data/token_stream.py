"""Streams of token data sets to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import datasets

from hf_vq.data.streams import PartedStream, StreamRow


class TokenStream(PartedStream):
    """The rows of a token data set that is read as it goes, for `GeneratorTrainer`.

    An example is a dict with ``image_tokens``, an int64 tensor (h, w) or (h, w, groups), and ``label``, an int, where
    the images had labels. It iterates and resumes as a `PartedStream`.

    Args:
        source: What ``load_token_dataset(..., streaming=True)`` returns.
        label_names: Names of the classes, see `read_manifest`; None if they have none.
        seed: Seed of shuffling, the same on all ranks.
        shuffle_buffer: Rows that are shuffled together, beside the order of the files; 0 keeps the order.
        rank: Number of this process; each of ``world_size`` processes sees its own part of the data.
        world_size: Number of processes.

    Attributes:
        check: Looks at each example, and raises what is wrong with it.
    """

    def __init__(
        self,
        source: datasets.IterableDataset,
        label_names: list[str] | None = None,
        *,
        seed: int = 0,
        shuffle_buffer: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(source, seed, shuffle_buffer, rank, world_size)
        self.label_names = label_names
        self.check: Callable[[dict[str, Any]], None] | None = None

    def first_example(self) -> dict[str, Any]:
        """The first row of the stream; it is read anew, wherever the stream is."""
        row = next((row for part in range(len(self.parts)) for row in self.parts.read(part)), None)
        if row is None:
            raise ValueError("The token stream is empty.")
        return _example(row)

    def _examples(self, rows: Iterator[StreamRow]) -> Iterator[dict[str, Any]]:
        for found in rows:
            example = _example(found.row)
            if self.check is not None:
                self.check(example)
            yield example


def _example(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("image_tokens", "label") if name in row}
