"""States of vqtorch's layers: the same codes, clocks and maps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import hf_vq
from hf_vq import GroupVectorQuant, VectorQuant
from hf_vq.convert.vqtorch import load_vqtorch_state_dict

VQTORCH = Path(__file__).parents[2] / "data" / "vqtorch_reference.safetensors"


with safe_open(VQTORCH, "pt") as _file:
    SETTINGS = {name: json.loads(text) for name, text in _file.metadata().items()}


@pytest.mark.parametrize("case", [name for name in sorted(SETTINGS) if not name.endswith("_pool")])
def test_vqtorch_states(case: str) -> None:
    """A layer with the state of each reference case gives the reference's output, codes and loss."""
    with safe_open(VQTORCH, "pt") as file:
        data = {key.split(".")[1]: file.get_tensor(key) for key in file.keys() if key.startswith(f"{case}.")}
    settings = {key: value for key, value in SETTINGS[case].items() if key not in ("task_loss", "total")}
    layer = getattr(hf_vq, settings.pop("cls"))(**settings).double()
    state = {"codebook.weight": data["codebook"]}
    if "affine_scale" in data:
        state |= {"affine_transform.scale": data["affine_scale"], "affine_transform.bias": data["affine_bias"]}

    load_vqtorch_state_dict(layer, state)

    z_q, out = layer(data["z"])
    torch.testing.assert_close(z_q, data["z_q"], rtol=0, atol=1e-10)
    torch.testing.assert_close(out.loss, data["commit_loss"], rtol=0, atol=1e-10)
    assert torch.equal(out.q, data["codes"])


def test_vqtorch_clocks_and_shared_maps() -> None:
    """Initialization and the patience with unused codes continue, and separate codebooks share one map."""
    layer = GroupVectorQuant(8, 6, groups=2, share=False, affine_lr=2.0, replace_freq=20, kmeans_init=True, norm="bn")
    scale, bias = torch.randn(1, 4), torch.randn(1, 4)
    state = {
        "codebook.weight": torch.randn(6, 4),
        "affine_transform.scale": scale,
        "affine_transform.bias": bias,
        "_counts": torch.tensor([20.0, 1.0, 7.0, 20.0, 20.0, 20.0]),
        "data_initialized": torch.ones(1),
    }
    state |= {f"norm_layer.{key}": value for key, value in nn.BatchNorm2d(8).state_dict().items()}
    state["norm_layer.running_mean"] = torch.randn(8)

    load_vqtorch_state_dict(layer, state)

    assert layer.codebook.unused_steps.tolist() == [0, 19, 13, 0, 0, 0] and bool(layer.codebook.initialized)
    torch.testing.assert_close(layer.get_codebook(), state["codebook.weight"] * (1 + 2 * scale) + 2 * bias)
    assert torch.equal(layer.get_buffer("norm_layer.running_mean"), state["norm_layer.running_mean"])
    load_vqtorch_state_dict(layer, state | {"data_initialized": torch.zeros(1)})
    assert not layer.codebook.initialized


def test_vqtorch_running_map() -> None:
    """Running moments give the codes of the reference's formula."""
    layer = VectorQuant(3, 5, affine_mode="running")
    names = ("running_ze_mean", "running_ze_var", "running_c_mean", "running_c_var")
    state = {f"affine_transform.{name}": torch.rand(1, 3) + 0.5 for name in names}
    state["affine_transform.running_statistics_initialized"] = torch.ones(1)
    state["codebook.weight"] = torch.randn(5, 3)

    load_vqtorch_state_dict(layer, state)

    ze_mean, ze_var, c_mean, c_var = (state[f"affine_transform.{name}"] for name in names)
    expected = (state["codebook.weight"] - c_mean) * (ze_var / (c_var + 1e-8)).sqrt() + ze_mean
    torch.testing.assert_close(layer.get_codebook(), expected)


def test_a_vqtorch_state_of_other_settings_is_refused() -> None:
    """All differences are listed, and the layer keeps what it had."""
    layer = VectorQuant(8, 32, affine_lr=2.0)
    before = layer.codebook.weight.clone()
    state = {"codebook.weight": torch.zeros(16, 8), "norm_layer.weight": torch.ones(8)}

    with pytest.raises(ValueError) as caught:
        load_vqtorch_state_dict(layer, state)

    message = str(caught.value)
    assert "missing: 'affine_transform.bias', 'affine_transform.scale'" in message
    assert "not known to this layer: 'norm_layer.weight'" in message
    assert "'codebook.weight' has the shape (16, 8), expected (32, 8)" in message
    assert torch.equal(layer.codebook.weight, before)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("_counts", torch.ones(4), r"'_counts' has the shape \(4,\), expected \(6,\)"),
        ("data_initialized", torch.ones(2), r"'data_initialized' has the shape \(2,\), expected \(1,\)"),
    ],
)
def test_misshapen_vqtorch_clocks_are_refused(key: str, value: torch.Tensor, words: str) -> None:
    """They are refused before anything is copied."""
    layer = VectorQuant(4, 6, replace_freq=20)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}

    with pytest.raises(ValueError, match=words):
        load_vqtorch_state_dict(layer, {"codebook.weight": torch.zeros(6, 4), key: value})

    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name
