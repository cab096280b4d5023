"""The fields of one dataclass repeated in others, so that a list of options is written once."""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, get_args, get_type_hints

Options = TypeVar("Options")
Class = TypeVar("Class", bound=type)

_FROM_WORDS = (int, float, str, type(None))  # what a command line can read of a union of types


class RepeatedFields(Generic[Options]):
    """The fields of a dataclass of options, for other dataclasses that a command line fills.

    Args:
        options: The dataclass; the metadata of each field hold its `help`.
        prefix: What the repeated names begin with.
        changes: For an option's name what is different: a `name`, a `default` or a `help`.

    Example:

        >>> SAMPLES = RepeatedFields(MaskGitSampling, prefix="sample_")
        >>> @dataclass
        ... @SAMPLES.add_to
        ... class Arguments:
        ...     output_dir: str
        >>> SAMPLES.read(Arguments("out", sample_top_k=5))
        MaskGitSampling(num_steps=8, ..., top_k=5, top_p=None)
    """

    def __init__(
        self, options: type[Options], prefix: str = "", changes: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.options = options
        self.changes = changes or {}
        assert dataclasses.is_dataclass(options)
        self._fields = dataclasses.fields(options)
        self.names: dict[str, str] = {
            each.name: self.changes.get(each.name, {}).get("name", prefix + each.name) for each in self._fields
        }
        """For each option the name of the repeated field."""

    def add_to(self, cls: Class) -> Class:
        """Gives the fields to a class, below its `@dataclass`. They are keyword-only."""
        hints = get_type_hints(self.options)
        for each in self._fields:
            changes = self.changes.get(each.name, {})
            help_ = changes.get("help", each.metadata["help"])
            default = changes.get("default", each.default)
            cls.__annotations__[self.names[each.name]] = _type_from_words(hints[each.name])
            setattr(
                cls,
                self.names[each.name],
                dataclasses.field(default=default, kw_only=True, metadata={"help": help_}),
            )
        return cls

    def read(self, arguments: Any) -> Options:
        """The options that an instance of such a class holds.

        Raises:
            ValueError: For a wrong value; the message has the names of the instance's fields.
        """
        with self.errors_renamed():
            return self.options(**{option: getattr(arguments, name) for option, name in self.names.items()})

    @contextmanager
    def errors_renamed(self) -> Iterator[None]:
        """Messages about an option name the field that repeats it: `sample_top_k` for `top_k`."""
        try:
            yield
        except ValueError as error:
            renamed = re.sub(r"(?<=`)\w+", lambda match: self.names.get(match[0], match[0]), str(error))
            raise ValueError(renamed) from None


def _type_from_words(hint: Any) -> Any:
    """The part of a type that a command line can give: `float` of `float | torch.Tensor`."""
    members = [member for member in get_args(hint) if member in _FROM_WORDS]
    return functools.reduce(operator.or_, members) if members else hint
