"""Nested settings: flat, with the path of each value as its name, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(settings: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Settings without nesting. The name of a value is made of the names on the way to it."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = flatten(value, separator) if isinstance(value, Mapping) else {}
        flat |= {f"{name}{separator}{rest}": each for rest, each in inner.items()}
        if not isinstance(value, Mapping):
            flat[name] = value
    return flat


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], first_place: str = "there", second_place: str = "here"
) -> list[str]:
    """One line for each setting that is not the same in both; a missing one counts as None.

    Args:
        first: Settings, nested as you like.
        second: Others.
        first_place: Says where the first ones are, as in "seed: 0 there, 1 here".
        second_place: Says where the second ones are.
    """
    differing = differing_values(first, second)
    return [f"{name}: {one!r} {first_place}, {other!r} {second_place}" for name, (one, other) in differing.items()]


def differing_values(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of each setting that is not the same in two settings, nested as you like; a missing one is None."""
    one, other = flatten(first), flatten(second)
    return {name: (one.get(name), other.get(name)) for name in {**one, **other} if one.get(name) != other.get(name)}
