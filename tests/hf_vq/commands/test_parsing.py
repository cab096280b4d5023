"""Recipes and command lines: what wins, what is converted, and what is refused with a hint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_vq import MaskGitConfig, VQConfig, VQImageClassificationConfig
from hf_vq.commands.parsing import parse_command_line
from hf_vq.commands.recipes import recipe_names
from hf_vq.training.arguments import (
    ClassifierTrainingArguments,
    GeneratorTrainingArguments,
    TokenizerTrainingArguments,
)


def parse(*words: str) -> tuple[TokenizerTrainingArguments, dict[str, Any]]:
    """Parses a tokenizer's command line."""
    return parse_command_line(TokenizerTrainingArguments, VQConfig, words)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A recipe with numbers written as YAML does not read them."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "learning_rate: 3e-4\nuse_ema: true\nreport_to: [tensorboard, wandb]\nsave_total_limit: null\n"
        "model:\n  num_codes: 256\n  sync_nu: 1e-1\n  channel_multiplier: [1, 2]\n"
    )
    return str(path)


def test_a_recipe_fills_training_and_model_fields(recipe: str) -> None:
    """Numbers such as 3e-4, booleans, lists and null arrive with their types."""
    args, model = parse("--config", recipe, "--output_dir", "out")

    assert args.learning_rate == 3e-4
    assert args.use_ema is True
    assert args.report_to == ["tensorboard", "wandb"]
    assert args.save_total_limit is None
    assert model == {"num_codes": 256, "sync_nu": 0.1, "channel_multiplier": [1, 2]}
    assert VQConfig(**model).num_codes == 256


def test_the_command_line_wins_over_the_recipe(recipe: str) -> None:
    """Both spellings of a model field and a training field override what the recipe says."""
    args, model = parse(
        *("--output_dir", "out", "--config", recipe, "--learning_rate=1e-3", "--model.num_codes", "512"),
        *("--sync_nu", "2e-2", "--channel_multiplier", "1", "2", "4", "--use_ema", "false", "--norm", "l2"),
    )

    assert args.learning_rate == 1e-3
    assert args.use_ema is False
    assert model["num_codes"] == 512
    assert model["sync_nu"] == 0.02
    assert model["channel_multiplier"] == [1, 2, 4]
    assert model["norm"] == "l2"


@pytest.mark.parametrize(
    ("words", "given", "nearest"),
    [
        (("--learning_rat", "1"), "learning_rat", "learning_rate"),
        (("--num_code", "64"), "num_code", "model.num_codes"),
        (("--model.comitment_weight", "2"), "model.comitment_weight", "model.commitment_weight"),
        (("--save-step", "2"), "save_step", "save_steps"),
    ],
)
def test_an_unknown_word_names_the_nearest_field(words: tuple[str, ...], given: str, nearest: str) -> None:
    """A misspelt field on the command line is an error that offers the right one."""
    with pytest.raises(ValueError, match=f"Unknown field '{given}' in the command line. Did you mean '{nearest}'"):
        parse("--output_dir", "out", *words)


@pytest.mark.parametrize(
    ("text", "given", "nearest"),
    [
        ("max_step: 3", "max_step", "max_steps"),
        ("model: {num_kodes: 3}", "model.num_kodes", "model.num_codes"),
        ("num_codes: 64", "num_codes", "model.num_codes"),
        ("model: {learning_rate: 1}", "model.learning_rate", "learning_rate"),
    ],
)
def test_an_unknown_recipe_field_names_the_nearest_field(tmp_path: Path, text: str, given: str, nearest: str) -> None:
    """A misspelt field, or one at the wrong level, is an error that offers the right one and names the file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)

    with pytest.raises(ValueError, match=rf"Unknown field '{given}' in .*recipe.yaml. Did you mean '{nearest}'"):
        parse("--config", str(path), "--output_dir", "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max_steps", "many"), "invalid int value: 'many'"),
        (("--max_steps", "0"), "max_steps must be at least 1, got 0"),
        (("--adam_beta2", "1.5"), r"adam_beta2 must be in \[0, 1\), got 1.5"),
        (("--lr_scheduler", "cosinus"), "invalid choice: 'cosinus'"),
        (("--warmup_steps", "10", "--max_steps", "10"), "warmup_steps .* must be smaller than max_steps"),
        (("--config", "nowhere.yaml"), "There is no recipe 'nowhere.yaml'"),
        (
            ("--config", "scripts/configs/noto_emoji_32.yaml"),
            r"no file 'scripts/configs/noto_emoji_32.yaml'. .* by name: --config noto_emoji_32 \(hf-vq recipes",
        ),
        (("stray",), "Expected --field value, got 'stray'"),
    ],
)
def test_bad_values_are_refused(words: tuple[str, ...], message: str) -> None:
    """A value of the wrong type or out of range is refused with what was given."""
    with pytest.raises(ValueError, match=message):
        parse(*words, "--output_dir", "out")


def test_the_output_folder_is_required() -> None:
    """A run that does not say where it lives is refused."""
    with pytest.raises(ValueError, match="output_dir"):
        parse("--max_steps", "3")


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    """The recipes of the package parse into arguments and a configuration: of what their names say."""
    words = ("--config", name, "--output_dir", "out")
    if name.endswith("_maskgit"):
        MaskGitConfig(**parse_command_line(GeneratorTrainingArguments, MaskGitConfig, words)[1])
    elif name.endswith("_classifier"):
        fields = parse_command_line(ClassifierTrainingArguments, VQImageClassificationConfig, words)[1]
        VQImageClassificationConfig(**fields)
    else:
        VQConfig(**parse(*words)[1])


def test_a_field_of_any_type_takes_nothing() -> None:
    """A recipe's backbone can be given up for the default one."""
    words = ["--config", "noto_emoji_32_classifier", "--output_dir", "out", "--backbone_config", "none"]
    _, model = parse_command_line(ClassifierTrainingArguments, VQImageClassificationConfig, words)

    assert model["backbone_config"] is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--attn_resolutions", "16"), {"attn_resolutions": [16]}),
        (("--channel_multiplier", "1", "2"), {"channel_multiplier": [1, 2]}),
        (("--alternating_lr", "none"), {"alternating_lr": None}),
        (("--num_codes", "1e3"), {"num_codes": 1000}),
        (("--beta", "1"), {"beta": 1}),
    ],
)
def test_model_fields_are_understood_as_one_would_write_them(
    words: tuple[str, ...], expected: dict[str, object]
) -> None:
    """A list of one entry, nothing, and a whole number in scientific notation reach the configuration."""
    _, model = parse_command_line(TokenizerTrainingArguments, VQConfig, ["--output_dir", "out", *words])

    assert model == expected
