"""Loading from a folder: every kind, and never with weights that are not all there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from hf_vq import MaskGitConfig, MaskGitModel, VQImageClassificationConfig, VQModel, VQModelForImageClassification
from hf_vq.hub.loading import load_model, load_tokenizer

from ...tiny_tokens import save, tiny

Weights = dict[str, torch.Tensor]


def models() -> dict[str, Any]:
    """One of each kind."""
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = tiny()
    return {
        "tokenizer": tokenizer,
        "generator": MaskGitModel(MaskGitConfig(vq_config=tokenizer.config, **sizes)),
        "classifier": VQModelForImageClassification(
            VQImageClassificationConfig(image_size=16, base_channels=4, num_codes=16)
        ),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer's."""
    save(tiny(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("noun", ["tokenizer", "generator", "classifier"])
def test_every_kind_loads_from_its_folder(tmp_path: Path, noun: str) -> None:
    """As it was, in eval mode; it says where from, and the default image processor fits it."""
    model = models()[noun]
    model.save_pretrained(tmp_path)
    loaded, processor = load_model(tmp_path, noun=noun)

    weights = loaded.state_dict()
    assert type(loaded) is type(model) and not loaded.training and loaded.name_or_path == str(tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert processor.crop_size["height"] == 16


def test_another_kind_is_refused(tmp_path: Path) -> None:
    """The message says what it is, and of a generator what to pass instead."""
    models()["generator"].save_pretrained(tmp_path / "generator")
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")

    with pytest.raises(ValueError, match="is not a tokenizer but a MaskGitModel. Of a generator, pass the tokenizer"):
        load_tokenizer(tmp_path / "generator")
    with pytest.raises(ValueError, match=r"bert' is not a VQ model: .* of the type 'bert' \(BertModel\), not 'hf_vq'"):
        load_model(tmp_path / "bert")


def without_codes(weights: Weights) -> Weights:
    """The weights without the codebook."""
    return {name: value for name, value in weights.items() if name != "quantize.codebook.weight"}


def with_more(weights: Weights) -> Weights:
    """The weights and one that the model does not have."""
    return weights | {"quantize.other": torch.zeros(3)}


def of_another_shape(weights: Weights) -> Weights:
    """The weights with half the codes."""
    return weights | {"quantize.codebook.weight": weights["quantize.codebook.weight"][:150].clone()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_codes, "The weights of '.*model' are not whole: quantize.codebook.weight missing."),
        (with_more, "are not whole: quantize.other unknown to this kind of model."),
        (of_another_shape, "are damaged or of another model: "),
    ],
)
def test_weights_that_are_not_whole_are_refused(
    folder: Path, change: Callable[[Weights], Weights], message: str
) -> None:
    """A tokenizer without its codebook would load with random codes, and give tokens that mean nothing."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})

    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match=message):
            load(folder)


def test_damaged_files_are_refused(folder: Path) -> None:
    """Cut weights and a configuration that is no JSON, by name."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="The weights of '.*model' are damaged"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="The config.json of '.*model' cannot be read"):
        load_model(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    """A folder with nothing but a pickle has no weights for us."""
    torch.save(VQModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    with pytest.raises(OSError, match="model.safetensors"):
        load_model(folder)


def test_what_is_no_model_is_told_of(folder: Path, tmp_path: Path) -> None:
    """No folder, a run's folder with its model inside, a revision of a folder, a newer version."""
    (tmp_path / "run" / "final").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no tokenizer in '/no/such/folder': there is no such folder"):
        load_tokenizer("/no/such/folder")
    with pytest.raises(FileNotFoundError, match="no model in .* A finished run has its model in '.*final'"):
        load_model(tmp_path / "run")
    with pytest.raises(ValueError, match="which has no revision 'v1': leave it out"):
        load_model(folder, "v1")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"hf_vq_version": "99.0.0"}))
    with pytest.raises(ValueError, match="newer than"):
        load_model(folder)
