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
    """Repeats the fields of a dataclass of options in other dataclasses that a command line fills.

    Args:
        options: The dataclass. The metadata of each field holds its `help`.
        prefix: The repeated names begin with it.
        changes: Maps an option to another `name`, `default` or `help`, where the repeated field differs.

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
        """Maps an option to the name of the field that repeats it."""

    def add_to(self, cls: Class) -> Class:
        """Adds the fields to a class, as keyword-only ones. Write it below `@dataclass`."""
        hints = get_type_hints(self.options)
        for each in self._fields:
            changes = self.changes.get(each.name, {})
            help_ = changes.get("help", each.metadata["help"])
            default = changes.get("default", each.default)
            cls.__annotations__[self.names[each.name]] = _type_from_words(hints[each.name])
            field = dataclasses.field(default=default, kw_only=True, metadata={"help": help_})
            setattr(cls, self.names[each.name], field)
        return cls

    def read(self, arguments: Any) -> Options:
        """Returns the options that an instance of such a class holds.

        Raises:
            ValueError: For a wrong value; the message has the names of the instance's fields.
        """
        with self.errors_renamed():
            return self.options(**{option: getattr(arguments, name) for option, name in self.names.items()})

    @contextmanager
    def errors_renamed(self) -> Iterator[None]:
        """Errors raised inside name the repeated field, such as `sample_top_k`, and not the option `top_k`."""
        try:
            yield
        except ValueError as error:
            renamed = re.sub(r"(?<=`)\w+", lambda match: self.names.get(match[0], match[0]), str(error))
            raise ValueError(renamed) from None


def _type_from_words(hint: Any) -> Any:
    """Returns what a command line can give of a type: `float` of `float | torch.Tensor`."""
    members = [member for member in get_args(hint) if member in _FROM_WORDS]
    return functools.reduce(operator.or_, members) if members else hint
