"""`--help`: every field in a section, with its type, what it means and its default."""

from __future__ import annotations

import dataclasses
import re

import pytest
from transformers import PreTrainedConfig

from hf_vq import MaskGitConfig, VQConfig, VQImageClassificationConfig
from hf_vq.commands.generate import GenerateArguments
from hf_vq.commands.help import SECTIONS, describe_arguments, model_field_help, model_field_names, type_name
from hf_vq.commands.launching import LauncherArguments
from hf_vq.commands.parsing import parse_command_line
from hf_vq.data.tokenize import TokenizationArguments
from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.training.arguments import (
    ClassifierTrainingArguments,
    GeneratorTrainingArguments,
    TokenizerTrainingArguments,
)

CONFIGS = [VQConfig, MaskGitConfig, VQImageClassificationConfig]
ARGUMENTS = [
    TokenizerTrainingArguments, ClassifierTrainingArguments, GeneratorTrainingArguments, TokenizationArguments,
    EvaluationArguments, GenerateArguments, LauncherArguments,
]  # fmt: skip


def shown(arguments: type, config: type[PreTrainedConfig] | None, capsys: pytest.CaptureFixture[str]) -> str:
    """What `--help` prints."""
    with pytest.raises(SystemExit) as end:
        parse_command_line(arguments, config, ["--help"], "What it does.", "hf-vq it", LauncherArguments)  # type: ignore[type-var]
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("config", CONFIGS)
def test_the_docstring_explains_every_field_of_a_model(config: type[PreTrainedConfig]) -> None:
    """No field is left out, none that does not exist is explained, and each is explained once."""
    described = [name for section in model_field_help(config).values() for name in section]

    assert sorted(described) == sorted(model_field_names(config))
    assert all(len(text) > 15 for section in model_field_help(config).values() for text in section.values())


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_every_setting_has_help(arguments: type) -> None:
    """The metadata of each field of each command have it."""
    without = [field.name for field in dataclasses.fields(arguments) if not field.metadata.get("help")]  # type: ignore[arg-type]
    assert without == []


def test_sections_begin_with_fields_that_exist() -> None:
    """A renamed field would take its section along without a word."""
    names = {field.name for arguments in ARGUMENTS for field in dataclasses.fields(arguments)}  # type: ignore[arg-type]
    assert set(SECTIONS) <= names


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (TokenizerTrainingArguments, VQConfig),
        (ClassifierTrainingArguments, VQImageClassificationConfig),
        (GeneratorTrainingArguments, MaskGitConfig),
    ],
)
def test_help_shows_every_field_in_a_section(
    arguments: type, config: type[PreTrainedConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of trainer, model and launcher; the usage line names what must be given, not all fields."""
    text = shown(arguments, config, capsys)

    for field in (*dataclasses.fields(arguments), *dataclasses.fields(LauncherArguments)):  # type: ignore[arg-type]
        assert re.search(rf"^  --{field.name} ", text, re.MULTILINE), field.name
    for name in model_field_names(config):
        assert re.search(rf"^  --{name} ", text, re.MULTILINE), name
    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert headings[:3] == ["options", "Run", "Data"] and headings[-1] == "Processes"
    assert any(heading.startswith(f"Model: {config.__name__} ") for heading in headings)
    assert text.startswith("usage: hf-vq it [--config RECIPE] --output_dir VALUE [--FIELD VALUE ...]\n\nWhat it does.")
    assert "--output-dir" not in text and "--no_" not in text and "default: None" not in text


def test_a_field_is_shown_with_type_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers, choices, lists and switches say what can be written; markup is left out."""
    text = " ".join(shown(TokenizerTrainingArguments, VQConfig, capsys).split())

    assert "--learning_rate FLOAT Peak learning rate of AdamW. (default: 0.0003)" in text
    assert "--lr_scheduler {constant,cosine,onecycle} Learning rate" in text
    assert "--num_codes INT Codes in total, over all groups. At least 1. Of fsq, the product of levels;" in text
    assert "It may be left out there. (default: 1024)" in text
    assert "--channel_multiplier INT ... Not in sqvae." in text
    assert "--random_flip BOOL" in text and "--norm {none,l2,clip,bn,gn,in}" in text


def test_descriptions_of_arguments() -> None:
    """Over several lines, with types in brackets, up to the next section."""
    text = """Makes it.

    Args:
        size (`int`, *optional*): The size: at
            least 1.
        kind: `"a"` or [`B`].

    Returns:
        other: No argument.
    """
    assert describe_arguments(text) == {"size": "The size: at least 1.", "kind": "a or B."}
    assert describe_arguments("Nothing.") == {}


@pytest.mark.parametrize(
    ("hint", "word"),
    [
        (int, "INT"), (float | int, "FLOAT"), (bool | None, "BOOL"), (list[str], "TEXT ..."),
        (list[int] | tuple[int, ...], "INT ..."), (int | str | None, "INT"), (object, "VALUE"),
    ],
)  # fmt: skip
def test_words_for_types(hint: object, word: str) -> None:
    """Short, and the widest where there are several."""
    assert type_name(hint) == word
