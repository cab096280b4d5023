"""The layers reproduce the reference implementation where that one is right."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import hf_vq
from hf_vq.modeling import pooling_vq

REFERENCE = Path(__file__).parents[1] / "data" / "vqtorch_reference.safetensors"
with safe_open(REFERENCE, "pt") as _file:
    SETTINGS = {name: json.loads(text) for name, text in _file.metadata().items()}


def load(case: str) -> dict[str, torch.Tensor]:
    with safe_open(REFERENCE, "pt") as file:
        return {key.split(".")[1]: file.get_tensor(key) for key in file.keys() if key.startswith(f"{case}.")}


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_the_reference_holds_twelve_cases():
    """Ten quantizer settings and two pools are compared, none has got lost."""
    assert len(SETTINGS) == 12


@pytest.mark.parametrize("case", [name for name in sorted(SETTINGS) if not name.endswith("_pool")])
def test_quantizer_matches_the_reference(case):
    """Values, ids, loss and every gradient agree to 1e-10 in float64."""
    settings = dict(SETTINGS[case])
    layer_class = getattr(hf_vq, settings.pop("cls"))
    assert settings.pop("task_loss") == "sum(w*z_q)" and settings.pop("total") == "task + 5*commit_loss"
    layer = layer_class(**settings).double().train()
    data = load(case)
    with torch.no_grad():
        layer.codebook.weight.copy_(data["codebook"])
        if "affine_scale" in data:
            layer.codebook.affine_scale.copy_(data["affine_scale"])
            layer.codebook.affine_bias.copy_(data["affine_bias"])
    z = data["z"].requires_grad_()

    z_q, out = layer(z)
    ((data["w"] * z_q).sum() + 5 * out.loss).backward()

    close(z_q, data["z_q"])
    assert torch.equal(out.q, data["codes"])
    close(out.loss, data["commit_loss"])
    close(z.grad, data["grad_z"])
    close(layer.codebook.weight.grad, data["grad_codebook"])
    if "affine_scale" in data:
        close(layer.codebook.affine_scale.grad, data["grad_affine_scale"])
        close(layer.codebook.affine_bias.grad, data["grad_affine_bias"])


@pytest.mark.parametrize("case", [name for name in sorted(SETTINGS) if name.endswith("_pool")])
def test_pool_matches_the_reference(case):
    """Vector pooling agrees to 1e-10 in float64."""
    settings = dict(SETTINGS[case])
    pool = getattr(pooling_vq, settings.pop("cls"))(**settings)
    data = load(case)

    close(pool(data["x"]), data["y"])
