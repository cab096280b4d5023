"""A list of options as fields of other dataclasses: names, types, defaults, help, and messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from transformers import HfArgumentParser

from hf_vq.utils.fields import RepeatedFields


@dataclasses.dataclass(frozen=True)
class Options:
    """Some options."""

    steps: int = dataclasses.field(default=8, metadata={"help": "How many."})
    scale: float | Sequence[float] = dataclasses.field(default=1.0, metadata={"help": "How much."})
    order: Literal["up", "down"] = dataclasses.field(default="up", metadata={"help": "Which way."})
    limit: int | None = dataclasses.field(default=None, metadata={"help": "At most."})

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}; `limit=3` is none of `others`.")


DRAWS = RepeatedFields(
    Options, prefix="draw_", changes={"steps": {"name": "draws"}, "scale": {"default": 3.0, "help": "More."}}
)


@dataclasses.dataclass
@DRAWS.add_to
class Arguments:
    """What a command line gives."""

    output: str


def test_the_fields_are_the_options() -> None:
    """Each option is a field, with its default and help but for what was changed."""
    fields = {field.name: field for field in dataclasses.fields(Arguments)}
    assert list(fields) == ["output", "draws", "draw_scale", "draw_order", "draw_limit"]
    assert [field.default for field in fields.values()][1:] == [8, 3.0, "up", None]
    helps = [field.metadata["help"] for field in list(fields.values())[1:]]
    assert helps == ["How many.", "More.", "Which way.", "At most."]


def test_a_command_line_fills_them() -> None:
    """Types come from the options. A union gives the types that words can have, a literal gives choices."""
    parser: Any = HfArgumentParser(Arguments)  # type: ignore[arg-type]
    words = "--output out --draws 3 --draw_scale 2 --draw_order down --draw_limit 5"
    (arguments,) = parser.parse_args_into_dataclasses(words.split())
    assert DRAWS.read(arguments) == Options(steps=3, scale=2.0, order="down", limit=5)
    assert isinstance(arguments.draw_scale, float)
    (arguments,) = parser.parse_args_into_dataclasses(["--output", "out"])
    assert DRAWS.read(arguments) == Options(scale=3.0)
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--output", "out", "--draw_order", "left"])


def test_messages_have_the_names_of_the_fields() -> None:
    """A wrong `draws` is not called `steps`."""
    arguments: Any = Arguments("out")
    arguments.draws = 0
    with pytest.raises(ValueError, match="^`draws` must be at least 1, got 0; `draw_limit=3` is none of `others`.$"):
        DRAWS.read(arguments)
