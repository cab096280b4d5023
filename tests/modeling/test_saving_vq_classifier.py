"""Classifiers: saved, loaded, copied, and loaded where the package is not."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
)

from hf_vq import VQImageClassificationConfig, VQImageProcessor, VQModelForImageClassification, get_vq_layers

from .test_modeling_vq_classifier import BACKBONES, make, pixels


@pytest.mark.parametrize("name", BACKBONES)
def test_save_and_load(name: str, tmp_path: Path) -> None:
    """The same model comes back and gives the same tokens, without running a blank image again."""
    model = make(BACKBONES[name][0], id2label={0: "ant", 1: "bee", 2: "cat"}, label2id={"ant": 0, "bee": 1, "cat": 2})
    model(pixels())
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is VQModelForImageClassification and loaded.config.label2id == {"ant": 0, "bee": 1, "cat": 2}
    assert loaded.config.quantized_size == BACKBONES[name][1]
    with torch.no_grad():
        ours, theirs = model(pixels()), loaded(pixels())
    torch.testing.assert_close(ours.logits, theirs.logits)  # to the bit would ask for equally aligned memory
    assert torch.equal(ours.image_tokens, theirs.image_tokens)
    assert all(torch.equal(weight, loaded.state_dict()[key]) for key, weight in model.state_dict().items())
    assert {key.partition(".")[0] for key in loaded.state_dict()} == {"backbone", "quantize", "classifier"}


def test_a_deep_copy_uses_its_own_codes() -> None:
    """The hook of a copy belongs to the copy, with a codebook and statistics of its own."""
    model = make().eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.quantize.codebook.weight.add_(3.0)
        before = model(pixels()).logits
        assert not torch.equal(other(pixels()).logits, before)
        assert torch.equal(model(pixels()).logits, before)
    assert get_vq_layers(other) == [other.quantize] and other.quantize is not model.quantize
    other.train()(pixels())
    assert other.quantize.codebook.initialized and not model.quantize.codebook.initialized


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_built_where_no_gradients_are_recorded(mode: Any) -> None:
    """It finds the size of the quantized layer there as well."""
    with mode():
        assert VQModelForImageClassification(VQImageClassificationConfig(base_channels=8)).config.quantized_size


ELSEWHERE = """
import sys
sys.modules["hf_vq"] = None
import torch
from transformers import AutoModelForImageClassification, pipeline
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    logits = model(torch.load("pixels.pt")).logits
torch.save(logits, "logits.pt")
print(type(model).__module__)
print(len(pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)("image.png")))
"""


@pytest.mark.local_code
@pytest.mark.parametrize("name", ["alexnet", "vit"])
def test_it_loads_without_the_package(name: str, tmp_path: Path) -> None:
    """The code beside the weights is enough, for the model and for the pipeline."""
    model = make(BACKBONES[name][0]).eval()
    model.save_pretrained(tmp_path / "model")
    VQImageProcessor(image_size=16).save_pretrained(tmp_path / "model")
    torch.save(pixels(), tmp_path / "pixels.pt")
    Image.new("RGB", (20, 24), "red").save(tmp_path / "image.png")
    (tmp_path / "load.py").write_text(ELSEWHERE)
    result = subprocess.run(
        [sys.executable, "-I", "load.py", str(tmp_path / "model")], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    module, count = result.stdout.splitlines()
    assert module.startswith("transformers_modules.") and count == "3"
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(pixels()).logits)
