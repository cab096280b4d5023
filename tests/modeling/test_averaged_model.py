"""torch's own average of a model takes ours, buffers included; flags stay booleans in state dicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hf_vq import (
    GroupVectorQuant,
    ResidualVectorQuant,
    VectorQuant,
    VQConfig,
    VQImageClassificationConfig,
    VQModel,
    VQModelForImageClassification,
    get_vq_layers,
)

RUNNING: dict[str, Any] = {"affine_lr": 1.0, "affine_mode": "running", "kmeans_init": True, "replace_freq": 2}
TOKENIZER: dict[str, Any] = dict(architecture="sqvae", image_size=16, base_channels=8, embed_dim=8, num_codes=16)
MODELS: dict[str, Callable[[], Any]] = {
    "plain": lambda: VectorQuant(8, 16, **RUNNING),
    "groups": lambda: GroupVectorQuant(8, 16, groups=2, share=False, **RUNNING),
    "residual": lambda: ResidualVectorQuant(8, 16, groups=2, share=False, **RUNNING),
    "tokenizer": lambda: VQModel(VQConfig(**TOKENIZER, affine_mode="running", kmeans_init=True)),
    "classifier": lambda: VQModelForImageClassification(
        VQImageClassificationConfig(num_labels=3, image_size=32, base_channels=4, num_codes=16)  # type: ignore[call-arg]
    ),
}


def flags(model: nn.Module) -> dict[str, list[bool] | bool]:
    return {name: value.tolist() for name, value in model.state_dict().items() if name.endswith("initialized")}


@pytest.mark.parametrize("name", MODELS)
def test_buffers_are_averaged(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    shape = (4, 8, 4, 4) if isinstance(model, (VectorQuant, GroupVectorQuant, ResidualVectorQuant)) else (4, 3, 32, 32)
    averaged: Any = AveragedModel(model, use_buffers=True)
    for _ in range(4):
        model(torch.rand(shape))
        averaged.update_parameters(model)
    layer: Any
    for layer in get_vq_layers(averaged.module):
        codes = layer.get_codebook()
        assert codes.isfinite().all() and layer.codebook.is_initialized()
    assert flags(averaged.module) == flags(model) and flags(model)
    assert all(
        value.dtype == torch.bool for name, value in averaged.module.state_dict().items() if "initialized" in name
    )


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_flags_are_averaged(assign: bool) -> None:
    trained = MODELS["plain"]().train()
    trained(torch.rand(4, 8, 4, 4))
    model = MODELS["plain"]().train()
    model.load_state_dict(trained.state_dict(), assign=assign)
    assert flags(model) == flags(trained) and model.codebook.is_initialized()
    averaged: Any = AveragedModel(model, use_buffers=True)
    for _ in range(2):
        model(torch.rand(4, 8, 4, 4))
        averaged.update_parameters(model)
    assert flags(averaged.module) == flags(trained)


def test_pretrained_flags_are_averaged(tmp_path) -> None:
    MODELS["tokenizer"]().save_pretrained(tmp_path)
    model = VQModel.from_pretrained(tmp_path).train()
    averaged: Any = AveragedModel(model, use_buffers=True)
    for _ in range(2):
        model(torch.rand(4, 3, 16, 16))
        averaged.update_parameters(model)
        assert averaged.module.quantize.codebook.is_initialized()
    averaged.module.save_pretrained(tmp_path / "averaged")
    again: Any = VQModel.from_pretrained(tmp_path / "averaged")
    assert again.quantize.codebook.is_initialized() and flags(again) == flags(model)
