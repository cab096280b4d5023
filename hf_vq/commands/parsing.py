"""From a YAML recipe and command-line overrides to training arguments and model settings.

`HfArgumentParser` converts the types. Here is what it lacks: the model's fields, in a section of the recipe and among
the words, whichever comes first; the word `none`; and an error that offers the nearest name for an unknown one.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from transformers import HfArgumentParser, PreTrainedConfig

from hf_vq.commands.recipes import find_recipe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Arguments = TypeVar("Arguments", bound="DataclassInstance")

MODEL_SECTION = "model"


def parse_command_line(
    arguments_class: type[Arguments],
    config_class: type[PreTrainedConfig] | None,
    argv: Sequence[str],
    description: str | None = None,
) -> tuple[Arguments, dict[str, Any]]:
    """Reads `[--config recipe.yaml] [--field value ...]`; what is given on the command line wins.

    A recipe holds training fields, and the model's under `model:`. On the command line a model field is written
    `--model.num_codes 512` or simply `--num_codes 512`.

    Args:
        arguments_class: The dataclass of the trainer.
        config_class: The model's configuration class, which says the names of its fields. None for scripts that take
            no such fields.
        argv: The words after the script's name.
        description: Shown by `--help`.

    Returns:
        The training arguments, and the keyword arguments for `config_class`.

    Raises:
        ValueError: For a field that does not exist (the nearest one is named) or a value of the wrong type.
    """
    training_names = {field.name for field in dataclasses.fields(arguments_class)}
    model_names = model_field_names(config_class) if config_class else set()
    model_help = f"Model fields ({config_class.__name__}), also as --model.FIELD: " if config_class else ""
    parser = _ArgumentParser(
        arguments_class,
        description=description,
        epilog=f"{model_help}{', '.join(sorted(model_names))}." if model_help else None,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        conflict_handler="resolve",
    )
    parser.add_argument("--config", help="A YAML file with these fields, or the name of a shipped recipe.")

    recipe_path, words = _take_config(list(argv))
    recipe, model = read_recipe(recipe_path, training_names, model_names) if recipe_path else ({}, {})
    training_words, model_overrides = _split_words(words, training_names, model_names)
    types = {field.name: field.type for field in dataclasses.fields(config_class)} if config_class else {}
    model = {name: _as_field(value, types[name]) for name, value in {**model, **model_overrides}.items()}
    arguments = parser.parse_args_into_dataclasses(_as_words(recipe) + training_words)[0]
    return arguments, model


def model_field_names(config_class: type[PreTrainedConfig]) -> set[str]:
    """The fields that a configuration class declares itself, without those every configuration inherits."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {field.name for field in dataclasses.fields(config_class)} - inherited


def read_recipe(
    path: str | Path, training_names: set[str], model_names: set[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a YAML recipe and checks every name in it.

    Returns:
        The training fields and the model fields.
    """
    path = find_recipe(path)
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe {path} must be a mapping of field names to values.")
    model = recipe.pop(MODEL_SECTION, None) or {}
    if not isinstance(model, dict):
        raise ValueError(f"'{MODEL_SECTION}:' in {path} must be a mapping of field names to values.")
    for name in recipe:
        if name not in training_names:
            raise ValueError(unknown_field(str(name), training_names | _prefixed(model_names), where=str(path)))
    for name in model:
        if name not in model_names:
            known = _prefixed(model_names) | training_names
            raise ValueError(unknown_field(f"{MODEL_SECTION}.{name}", known, where=str(path)))
    return recipe, {name: _number_if_written_so(value) for name, value in model.items()}


def unknown_field(name: str, known: set[str], where: str) -> str:
    """The message for a name that does not exist; it offers the nearest one that does."""
    # Compared without the section: a field written at the wrong level is the likeliest slip of all.
    bare = name.rpartition(".")[2]
    by_last_part: dict[str, list[str]] = {}
    for candidate in sorted(known):
        by_last_part.setdefault(candidate.rpartition(".")[2], []).append(candidate)
    nearest = difflib.get_close_matches(bare, list(by_last_part), n=1, cutoff=0.0)[0]
    return f"Unknown field '{name}' in {where}. Did you mean '{by_last_part[nearest][0]}'?"


def _prefixed(names: set[str]) -> set[str]:
    return {f"{MODEL_SECTION}.{name}" for name in names}


def _take_config(words: list[str]) -> tuple[str | None, list[str]]:
    """Splits `--config FILE` (or `--config=FILE`) off the words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    known, rest = parser.parse_known_args(words)
    return known.config, rest


def _split_words(
    words: list[str], training_names: set[str], model_names: set[str]
) -> tuple[list[str], dict[str, Any]]:
    """Sorts command-line words into those of the training arguments and the values of model fields."""
    training: list[str] = []
    model: dict[str, Any] = {}
    position = 0
    while position < len(words):
        option, equals, value = words[position].partition("=")
        end = position + 1
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        values = ([value] if equals else []) + words[position + 1 : end]
        name = option.removeprefix("--").replace("-", "_")
        bare = name.removeprefix(f"{MODEL_SECTION}.")
        if option in ("-h", "--help"):
            training.append("--help")
        elif not option.startswith("--"):
            raise ValueError(f"Expected --field value, got '{words[position]}'.")
        elif name in training_names or name.removeprefix("no_") in training_names:
            training += [f"--{name}", *values]
        elif bare in model_names:
            if not values:
                raise ValueError(f"--{name} needs a value.")
            parsed = [_number_if_written_so(yaml.safe_load(text)) for text in values]
            model[bare] = parsed[0] if len(parsed) == 1 else parsed
        else:
            known = training_names | {f"{MODEL_SECTION}.{field}" for field in model_names}
            raise ValueError(unknown_field(name, known, where="the command line"))
        position = end
    return training, model


def _as_words(recipe: dict[str, Any]) -> list[str]:
    """Writes a recipe as command-line words, so that both go through the same conversion of types.

    YAML reads `3e-4` as text; argparse makes the number of it that it is.
    """
    words: list[str] = []
    for name, value in recipe.items():
        if isinstance(value, list | tuple):
            words += [f"--{name}", *(str(item) for item in value or ["none"])]
        else:
            words += [f"--{name}", "none" if value is None else str(value)]
    return words


def _as_field(value: Any, annotation: Any) -> Any:
    """A value as written, in the form that a model field wants: `none`, one entry for a list, `1e3` for 1000."""
    written = str(annotation)
    if isinstance(value, str) and value.lower() in ("none", "null") and "None" in written:
        return None
    if "list[" in written and not isinstance(value, list | tuple) and value is not None:
        value = [value]
    if "float" not in written:
        if isinstance(value, list):
            return [int(item) if isinstance(item, float) and item.is_integer() else item for item in value]
        if isinstance(value, float) and value.is_integer():
            return int(value)
    return value


def _number_if_written_so(value: Any) -> Any:
    """`"1e-4"`, which YAML takes for text, as the number it is; anything else unchanged."""
    if isinstance(value, list):
        return [_number_if_written_so(item) for item in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions as they are written, and the default of every field."""


class _ArgumentParser(HfArgumentParser):
    """`HfArgumentParser` whose optional fields can be set to nothing with the word `none`, and that raises."""

    def __init__(self, arguments_class: Any, **options: Any) -> None:
        # From the class: HfArgumentParser takes None out of the types of the fields themselves.
        hints = typing.get_type_hints(arguments_class)
        self.optional = {f"--{name}" for name, hint in hints.items() if type(None) in typing.get_args(hint)}
        super().__init__(arguments_class, **options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:  # type: ignore[override]
        if names[0] in self.optional:
            options["type"] = _optional(options["type"])
        return super().add_argument(*names, **options)

    def error(self, message: str) -> Any:
        raise ValueError(message)


def _optional(convert: Any) -> Any:
    """A converter that also understands the word `none`."""

    def converter(text: str) -> Any:
        return None if text.lower() in ("none", "null") else convert(text)

    converter.__name__ = convert.__name__
    return converter
