"""Nested settings."""

from __future__ import annotations

from hf_vq.utils.settings import differences, flatten


def test_names_are_paths_of_names() -> None:
    """Any depth and separator; empty mappings vanish, lists and None stay."""
    nested = {"a": {"b": {"c": 1}, "d": None}, "e": [1, {"f": 2}], "g": {}}

    assert flatten(nested) == {"a.b.c": 1, "a.d": None, "e": [1, {"f": 2}]}
    assert list(flatten(nested, ": ")) == ["a: b: c", "a: d", "e"]


def test_differences_name_the_setting_and_both_values() -> None:
    """What is equal is not told; a setting that is missing counts as None, also where all of its section is."""
    first = {"seed": 0, "views": {"names": ["center"], "crop": None}, "old": {"x": 1}}
    second = {"seed": 1, "views": {"names": ["center"]}, "new": "y"}

    assert differences(first, second) == [
        "seed: 0 there, 1 here",
        "old.x: 1 there, None here",
        "new: None there, 'y' here",
    ]
    assert differences({"a": 1}, {"a": 2}, "in the checkpoint", "now") == ["a: 1 in the checkpoint, 2 now"]
    assert differences(first, first) == []
