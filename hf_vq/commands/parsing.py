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

from hf_vq.commands.help import SECTIONS, HelpFormatter, is_required, model_field_help, model_field_names, type_name
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
    prog: str | None = None,
    other_fields: type | None = None,
) -> tuple[Arguments, dict[str, Any]]:
    """Reads `[--config recipe.yaml] [--field value ...]`; what is given on the command line wins.

    A recipe holds training fields, and the model's under `model:`. On the command line a model field is written
    `--model.num_codes 512` or simply `--num_codes 512`.

    Args:
        arguments_class: The dataclass of the trainer.
        config_class: The model's configuration class, which says the names of its fields. None for commands that
            take no such fields.
        argv: The words after the command's name.
        description: Shown by `--help`.
        prog: The command's name, for `--help`.
        other_fields: A dataclass of fields that somebody else has taken off the words. They are explained here.

    Returns:
        The training arguments, and the keyword arguments for `config_class`.

    Raises:
        ValueError: For a field that does not exist (the nearest one is named) or a value of the wrong type.
    """
    training_names = {field.name for field in dataclasses.fields(arguments_class)}
    model_names = model_field_names(config_class) if config_class else set()
    other_names = {field.name for field in dataclasses.fields(other_fields)} if other_fields else set()
    parser = _ArgumentParser(arguments_class, description=description, prog=prog)
    recipe_path, words = _take_config(list(argv))
    recipe, model = read_recipe(recipe_path, training_names, model_names) if recipe_path else ({}, {})
    training_words, model_overrides = _split_words(words, training_names, model_names, other_names)
    if "--help" in training_words:
        if config_class:
            parser.explain_model(config_class, leave_out=training_names)
        if other_fields:
            parser.explain(other_fields)
    types = {field.name: field.type for field in dataclasses.fields(config_class)} if config_class else {}
    model = {name: _as_field(value, types[name]) for name, value in {**model, **model_overrides}.items()}
    arguments = parser.parse_args_into_dataclasses(_as_words(recipe) + training_words)[0]
    return arguments, model


def given_fields(
    arguments_class: type[Any], config_class: type[PreTrainedConfig], argv: Sequence[str]
) -> tuple[set[str], set[str]]:
    """Which fields the words and the recipe give, of those that `parse_command_line` returns.

    Returns:
        The names of training fields that either gives, and of model fields that the words give.
    """
    training_names = {field.name for field in dataclasses.fields(arguments_class)}
    model_names = model_field_names(config_class)
    path, words = _take_config(list(argv))
    recipe = read_recipe(path, training_names, model_names)[0] if path else {}
    training_words, model = _split_words(words, training_names, model_names, set())
    options = {word[2:].partition("=")[0].replace("-", "_") for word in training_words if word.startswith("--")}
    given = {name if name in training_names else name.removeprefix("no_") for name in options}
    return {*recipe, *given}, set(model)


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
    words: list[str], training_names: set[str], model_names: set[str], other_names: set[str]
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
            known = training_names | other_names | _prefixed(model_names)
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
    if isinstance(value, str) and value.lower() in ("none", "null") and ("None" in written or annotation is Any):
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


class _ArgumentParser(HfArgumentParser):
    """`HfArgumentParser` with sections, that raises, and whose optional fields the word `none` sets to nothing."""

    def __init__(self, arguments_class: Any, description: str | None = None, prog: str | None = None) -> None:
        self.hints: dict[str, Any] = {}
        self.section: Any = None
        self.sections: dict[str, Any] = {}
        super().__init__(
            description=description,
            prog=prog,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            conflict_handler="resolve",
        )
        super().add_argument("--config", metavar="RECIPE", help="Name of a recipe, or a YAML file with these fields.")
        required = [field.name for field in dataclasses.fields(arguments_class) if is_required(field)]
        words = "".join(f" --{name} VALUE" for name in required)
        self.usage = f"{self.prog} [--config RECIPE]{words} [--FIELD VALUE ...]"
        self.dataclass_types = [arguments_class]
        self._add_dataclass_arguments(arguments_class)

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        # From the class: HfArgumentParser takes None out of the types of the fields themselves.
        self.hints |= typing.get_type_hints(dtype)
        super()._add_dataclass_arguments(dtype)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:  # type: ignore[override]
        name = names[0].removeprefix("--")
        if name not in self.hints:  # --no_flip says the same as --flip false
            hidden = {"help": argparse.SUPPRESS} if name.startswith("no_") else {}
            return super().add_argument(*names, **{**options, **hidden})
        if name in SECTIONS:
            self.section = self.sections.get(SECTIONS[name]) or self.add_argument_group(SECTIONS[name])
            self.sections[SECTIONS[name]] = self.section
        if type(None) in typing.get_args(self.hints[name]):
            options["type"] = _optional(options["type"])
        add = self.section.add_argument if self.section else super().add_argument
        return add(*names, metavar=type_name(self.hints[name]), **options)

    def explain(self, arguments_class: Any) -> None:
        """Adds the fields of another dataclass to what `--help` shows."""
        self._add_dataclass_arguments(arguments_class)

    def explain_model(self, config_class: type[PreTrainedConfig], leave_out: set[str]) -> None:
        """Adds the fields of a model to what `--help` shows."""
        fields = {field.name: field for field in dataclasses.fields(config_class)}
        for owner, described in model_field_help(config_class).items():
            group = self.add_argument_group(f"Model: {owner} (in a recipe under `{MODEL_SECTION}:`)")
            for name in (name for name in described if name not in leave_out):
                default, metavar = fields[name].default, type_name(fields[name].type)
                note = "" if default in (None, dataclasses.MISSING) else f" (default: {default})"
                text = (described[name] + note).replace("%", "%%")
                group.add_argument(f"--{name}", metavar=metavar, default=argparse.SUPPRESS, help=text)

    def error(self, message: str) -> Any:
        raise ValueError(message)


def _optional(convert: Any) -> Any:
    """A converter that also understands the word `none`."""

    def converter(text: str) -> Any:
        return None if text.lower() in ("none", "null") else convert(text)

    converter.__name__ = convert.__name__
    return converter
