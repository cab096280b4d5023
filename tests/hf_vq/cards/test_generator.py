"""Generators on the Hub: what the card says, that its code runs, and that one commit holds everything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import hf_vq
from hf_vq import MaskGitConfig, MaskGitModel, VQConfig
from hf_vq.cards.generator import generator_card

if TYPE_CHECKING:
    from ...hub_server import HubServer

NAME = "alice/maskgit"
METRICS = {"masked_cross_entropy": 3.14159, "masked_accuracy": 0.25, "num_images": 7}


def config(**fields: Any) -> MaskGitConfig:
    """A generator of some thousand parameters."""
    vq_config = VQConfig(architecture="sqvae", image_size=16, base_channels=8, num_res_blocks=1, num_codes=16)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return MaskGitConfig(vq_config=vq_config, **{**sizes, **fields})


def named(*names: str) -> dict[str, Any]:
    """The fields of classes with names."""
    numbers = range(len(names))
    return {
        "num_classes": len(names),
        "id2label": dict(zip(numbers, names, strict=True)),
        "label2id": dict(zip(names, numbers, strict=True)),
    }


def test_a_pushed_generator_comes_back_whole(hub: HubServer) -> None:
    """One commit with card, samples, image processor and code; `from_hub` gives weights, classes and tokenizer."""
    torch.manual_seed(0)
    model: Any = MaskGitModel(config(**named("cat", "dog")))
    commit = model.push_to_hub(NAME, metrics=METRICS, images=[Image.new("RGB", (16, 16), "red")] * 3)

    history = hub.store.repositories["models", NAME].history()
    assert [commit.title for commit in history] == ["Upload MaskGitModel", "initial commit"]
    files = set(hub.store.files(NAME))
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "samples.png"} < files
    assert {"modeling_maskgit.py", "modeling_vq.py", "pipeline_maskgit.py"} < files
    loaded, processor = hf_vq.from_hub(NAME)
    assert isinstance(loaded, MaskGitModel) and not loaded.training and processor.crop_size["height"] == 16
    assert loaded.config._commit_hash == commit.oid
    assert loaded.config.id2label == {0: "cat", 1: "dog"}
    weights = loaded.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("fields", [named("cat", "dog"), {}])
def test_the_code_of_a_pushed_card_runs_without_the_package(
    hub: HubServer, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """What the card tells people to type makes images, with classes and without."""
    model: Any = MaskGitModel(config(**fields))
    model.push_to_hub(NAME)
    text = hub.store.read(NAME, "README.md").decode()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (in_one_step,) = re.findall(r"In one step: `(.*?)`", text)
    script = tmp_path / "script.py"
    script.write_text(
        f'import sys\nsys.modules["hf_vq"] = None\n{code}\nimport transformers\nprint({in_one_step}.size)\n'
        "print(len(output.images), type(model).__module__)\n"
    )
    result = subprocess.run(
        [sys.executable, "-I", script],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert "(16, 16)" in result.stdout and f"{2 if fields else 4} transformers_modules" in result.stdout
    assert Image.open(tmp_path / "sample.png").size == (16, 16)


def test_the_card_says_how_it_was_trained_and_measured() -> None:
    """Numbers with their name, the recipe, the classes; what was not measured or is off is left out."""
    card = generator_card(
        config(**named("cat", "big | dog"), unmasked_loss_weight=0.1),
        METRICS | {"frechet_8x8_pixels": 0.5, "num_distance_images": 5},
        "user/tokens",
        "test",
        {"steps": 1500, "weight average": None},
    )

    for part in (
        "| Cross entropy of hidden tokens (nats) | 3.1416 | user/tokens | test | 7 |",
        "| Fréchet distance of images shrunk to 8 x 8 pixels (not FID) | 0.5000 | user/tokens | test | 5 |",
        "it is no FID", "| steps | 1,500 |", "| 2: cat, big \\| dog |", "+ 0.1 x that of the visible ones",
        "| masks | arccos schedule, exact counts |", "chang2022maskgit", "class_labels=[0, 1], num_steps=8, guidance",
    ):  # fmt: skip
        assert part in str(card), part
    assert "weight average" not in str(card)
    assert card.data["datasets"] == ["user/tokens"]
    bare = str(generator_card(config(), {}, "/home/me/tokens"))
    assert "Not measured." in bare and "num_images=4, num_steps=8, generator" in bare and "/home/me" not in bare
    assert ModelCard(str(card)).data["eval_results"][0].dataset_args == {"num_images": 7, "num_distance_images": 5}
