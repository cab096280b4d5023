"""A cache that another program filled, offline: every loader says what it cannot verify, and takes it on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
from accelerate.state import PartialState
from huggingface_hub import snapshot_download

import hf_vq
from hf_vq import MaskGitConfig, MaskGitModel, load_token_dataset
from hf_vq.commands import convert_checkpoint, generate
from hf_vq.data.tokenize import tokenize_dataset
from hf_vq.data.tokens import push_token_dataset, read_manifest
from hf_vq.evaluation.subjects import load_subjects
from hf_vq.hub.loading import load_model, load_tokenizer
from hf_vq.hub.repository import HubError
from hf_vq.training.arguments import GeneratorTrainingArguments
from hf_vq.training.generator_data import build_token_datasets, load_run_tokenizer

from ..tiny_tokens import PROCESSOR, arguments, picture, save, tiny

if TYPE_CHECKING:
    from ..hub_server import HubServer

Load = Callable[[Path, bool], Any]


def generator_run(folder: Path, allow: bool) -> Any:
    """What a run of a generator loads first."""
    args = GeneratorTrainingArguments(
        output_dir="out", tokens="alice/tokens", tokenizer="alice/vq", allow_unverified=allow, use_cpu=True
    )
    return build_token_datasets(args, load_run_tokenizer(args)[0])


def generated(folder: Path, allow: bool) -> None:
    """Images by the command."""
    words = ["--model", "alice/maker", "--output", str(folder / "x.png"), "--num_steps", "1", "--device", "cpu"]
    run(lambda: generate.main([*words, *["--allow_unverified"] * allow]))


def exported(folder: Path, allow: bool) -> None:
    """The tokenizer in another layout, by the command."""
    words = ["--checkpoint", "alice/vqgan", "--output_dir", str(folder / "x"), "--to", "diffusers"]
    run(lambda: convert_checkpoint.main([*words, *["--allow_unverified"] * allow]))


def run(main: Callable[[], None]) -> None:
    """A command, whose errors end it with one line."""
    try:
        main()
    except SystemExit as end:
        raise HubError(str(end)) from end


LOADERS: dict[str, Load] = {
    "load_model": lambda folder, allow: load_model("alice/vq", allow_unverified=allow),
    "load_tokenizer": lambda folder, allow: load_tokenizer("alice/vq", allow_unverified=allow),
    "read_manifest": lambda folder, allow: read_manifest("alice/tokens", allow_unverified=allow),
    "load_token_dataset": lambda folder, allow: load_token_dataset(
        "alice/tokens", tokenizer="alice/vq", allow_unverified=allow
    ),
    "evaluation": lambda folder, allow: load_subjects(["alice/vq"], allow_unverified=allow),
    "tokenization": lambda folder, allow: tokenize_dataset(
        arguments("alice/vq", folder / "images", folder / "again", allow_unverified=allow)
    ),
    "training of a generator": generator_run,
    "generation": generated,
    "export": exported,
}


def test_every_loader_can_be_told_to_take_what_is_there(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the word an error that names it, with it the files; in Python and in commands."""
    for number in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        picture(number).save(tmp_path / "images" / f"{number}.png")
    tokenizer = tiny()
    hf_vq.push_to_hub(tokenizer, "alice/vq", image_processor=PROCESSOR)
    tokenize_dataset(arguments(save(tokenizer, tmp_path / "vq"), tmp_path / "images", tmp_path / "tokens"))
    push_token_dataset(tmp_path / "tokens", "alice/tokens")
    config = MaskGitConfig(vq_config=tokenizer.config, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    hf_vq.push_to_hub(MaskGitModel(config), "alice/maker")
    vqgan: dict[str, Any] = {"image_size": 16, "base_channels": 32, "channel_multiplier": [1, 1], "num_codes": 16}
    hf_vq.push_to_hub(hf_vq.VQModel(hf_vq.VQConfig(**vqgan)), "alice/vqgan")
    for name in ("vq", "maker", "vqgan"):
        snapshot_download(f"alice/{name}")
    snapshot_download("alice/tokens", repo_type="dataset")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    for name, load in LOADERS.items():
        with pytest.raises(HubError, match="not verified.*--allow_unverified"):
            load(tmp_path, False)
        try:
            load(tmp_path, True)
        except Exception as error:
            raise AssertionError(f"{name}: {error!r}") from error
    assert (tmp_path / "x.png").is_file() and (tmp_path / "x" / "config.json").is_file()
    PartialState._reset_state()
