"""What a layout is: where another project keeps the weights of a `VQModel`.

A layout is a function from our names to its names. So one description serves both directions and the inference of the
architecture. Our names are those of taming-transformers, except for the codebook's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_vq.modeling.pixel_range_vq import SIGNED

Weights = dict[str, torch.Tensor]


@dataclass
class Source:
    """What a layout reads, and what it says of it.

    Attributes:
        weights: Tensors by their names in the file, without a prefix. A layout may change them.
        config: The configuration beside the weights, as in its `config.json`. It may be empty.
        notes: What was left out or decided, one sentence for each.
        assumptions: What neither file says, with the way to say it otherwise, one sentence for each.
        patch_size: Side of patches whose wavelets the network reads in place of pixels. A layout's `fold` sets it.
    """

    weights: Weights
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    patch_size: int = 1


@dataclass(frozen=True)
class Layout:
    """Where a project keeps the weights of a `VQModel`. A new one is a row of `LAYOUTS`.

    Attributes:
        name: What `layout=` says.
        example: A name that a file in this layout holds.
        is_of: Whether weights are in this layout and in no other, by their names or shapes.
        renames: Patterns and replacements, applied to our names one after the other.
        counts_down: Whether the levels of the decoder are numbered in the order in which they run.
        is_named_by: Whether the configuration beside the weights names this layout. It decides between layouts of the
            same names.
        fold: Changes the weights before they are read, to names and shapes that the rest of the row describes.
        fields: Fields of `VQConfig` that names and shapes do not tell.
        pixel_range: The range of the images that the project trains with. None if it has none.
        project: Where the code is that these files are made with.
    """

    name: str
    example: str
    is_of: Callable[[Mapping[str, torch.Tensor]], bool]
    renames: tuple[tuple[str, str], ...] = ()
    counts_down: bool = True
    is_named_by: Callable[[Mapping[str, Any]], bool] = lambda config: False
    fold: Callable[[Source], None] = lambda source: None
    fields: Callable[[Source], dict[str, Any]] = lambda source: {}
    pixel_range: tuple[float, float] | None = SIGNED
    project: str = ""

    def key(self, key: str, num_levels: int) -> str:
        """Returns the name that `key` of a `VQModel` with `num_levels` resolutions has in this layout."""
        if self.counts_down:
            key = re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{num_levels - 1 - int(found[1])}", key)
        key = key.replace("quantize.codebook.", "quantize.embedding.")
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key

    def count(self, weights: Collection[str], pattern: str, num_levels: int = 0) -> int:
        """Returns how many numbers, from 0 on, make a name of `pattern`, one of ours, that is among the weights."""
        number = 0
        while self.key(pattern.format(number), num_levels) in weights:
            number += 1
        return number

    def count_levels(self, weights: Collection[str]) -> int:
        """Returns the number of resolutions."""
        prefix = self.key("encoder.down.0.block.0.conv1.weight", 0).partition(".0.")[0]
        number = 0
        while any(key.startswith(f"{prefix}.{number}.") for key in weights):
            number += 1
        return number


def any_begins(prefix: str) -> Callable[[Collection[str]], bool]:
    """Returns a function that tells whether one of the names begins with `prefix`."""
    return lambda keys: any(key.startswith(prefix) for key in keys)
