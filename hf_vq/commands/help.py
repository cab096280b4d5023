"""What `--help` of a command shows: fields in sections, each with its type, what it means and its default."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import typing
from typing import Any

from transformers import PreTrainedConfig

SECTIONS = {
    "output_dir": "Run",
    "dataset": "Data", "train_split": "Data", "tokens": "Data", "dataset_revision": "Data", "split": "Data",
    "flip": "Views of each image",
    "images_per_shard": "Files and batches",
    "max_steps": "Length and batches",
    "learning_rate": "Optimization", "use_ema": "Optimization",
    "perceptual_weight": "Optional losses",
    "mixed_precision": "Machine", "cpu_threads": "Machine",
    "logging_steps": "Reports", "monitor_steps": "Reports", "num_grid_images": "Reports",
    "features": "Features of distances",
    "num_samples": "Samples", "num_sample_images": "Samples", "num_steps": "Samples",
    "push_to_hub": "Publishing",
    "num_processes": "Processes",
}  # fmt: skip
"""Field -> the section of `--help` that begins with it. The fields after it are of the same section."""


def model_field_names(config_class: type[PreTrainedConfig]) -> set[str]:
    """The fields that a configuration class declares itself, without those every configuration inherits."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {field.name for field in dataclasses.fields(config_class)} - inherited


def model_field_help(config_class: type[PreTrainedConfig]) -> dict[str, dict[str, str]]:
    """What the docstrings of a configuration class say about its fields.

    Returns:
        For each class that declares fields, by its name: field -> description, in the order of the docstring.
    """
    names = model_field_names(config_class)
    sections = {}
    for owner in config_class.__mro__:
        described = describe_arguments(owner.__doc__ or "")
        own = {name: text for name, text in described.items() if name in names and name in vars(owner)}
        if own:
            sections[owner.__name__] = own
    return sections


def describe_arguments(docstring: str) -> dict[str, str]:
    """The section `Args:` of a docstring in Google style, as argument -> description in plain words."""
    found = re.search(r"^Args:\n((?:^ .*\n|^\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    entries = re.split(r"^ {4}(\w+)[^:\n]*: ", found[1] if found else "", flags=re.MULTILINE)[1:]
    texts = (re.sub(r'\[?`"?([^`]*?)"?`\]?', r"\1", " ".join(text.split())) for text in entries[1::2])
    return dict(zip(entries[::2], texts, strict=True))


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a dataclass's field must be given."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def type_name(hint: Any) -> str:
    """A word for the values of a field: INT, FLOAT, TEXT, or its choices; with `...` where there can be several."""
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return "{" + ",".join(map(str, members)) + "}"
    if typing.get_origin(hint) in (list, tuple):
        return f"{type_name(members[0])} ..."
    if members:
        names = [type_name(member) for member in members]
        lists = [name for name in names if name.endswith("...")]
        return lists[0] if lists else "FLOAT" if "FLOAT" in names else names[0]
    return {int: "INT", float: "FLOAT", bool: "BOOL", str: "TEXT"}.get(hint, "VALUE")


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions as they are written, each option in one spelling, and the defaults that say something."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spellings = [text for text in action.option_strings if text == "-h" or "-" not in text.removeprefix("--")]
        return " ".join([", ".join(spellings), *([] if action.nargs == 0 else [self._format_args(action, "VALUE")])])

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.choices is not None:
            return "{" + ",".join(map(str, action.choices)) + "}"
        return str(action.metavar or default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, argparse.SUPPRESS) or action.default == [] or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)
