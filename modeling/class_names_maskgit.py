# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Classes by their numbers or by their names, which the configuration's `id2label` holds."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

_NUMBER = re.compile(r"[+-]?\d+", re.ASCII)
_MAX_NAMES = 20  # how many names a message lists


def class_numbers(labels: Iterable[int | str], config: Any) -> list[int]:
    """Turns names of classes into their numbers; numbers stay as they are.

    Args:
        labels: Numbers or names. Text that is no name but a whole number counts as the number.
        config: [`MaskGitConfig`]. Has the names in `id2label`.

    Returns:
        A number for each label. It may be out of range.

    Raises:
        ValueError: For a name that no class has, or that several have.
    """
    numbers: dict[str, list[int]] = {}
    for number, name in (config.id2label or {}).items():
        numbers.setdefault(name, []).append(int(number))
    labels = list(labels)
    named = [label for label in labels if isinstance(label, str)]
    unknown = [label for label in dict.fromkeys(named) if label not in numbers and not _NUMBER.fullmatch(label)]
    if unknown:
        raise ValueError(
            f"There {'are no classes' if unknown[1:] else 'is no class'} {', '.join(map(repr, unknown))}. "
            f"{_suggestion(unknown[0], list(numbers))}"
        )
    for label in named:
        if len(numbers.get(label, ())) > 1:
            raise ValueError(f"Several classes have the name {label!r}: give one of the numbers {numbers[label]}.")
    return [
        label if not isinstance(label, str) else numbers[label][0] if label in numbers else int(label)
        for label in labels
    ]


def _suggestion(label: str, names: list[str]) -> str:
    if not names:
        return "The model has no classes."
    by_lower = {name.lower(): name for name in names}
    nearest = difflib.get_close_matches(label.lower(), by_lower, n=1)
    question = f"Did you mean {by_lower[nearest[0]]!r}? " if nearest else ""
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return f"{question}The classes are {', '.join(map(repr, names[:_MAX_NAMES]))}{more}; numbers work, too."


__all__ = ["class_numbers"]
