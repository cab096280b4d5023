"""Models whose weights accelerate keeps on the CPU or on disk, and brings back for the module that reads them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from hf_vq import (
    MaskGitConfig,
    MaskGitModel,
    VQConfig,
    VQImageClassificationConfig,
    VQModel,
    VQModelForImageClassification,
)

SMALL: dict[str, Any] = dict(architecture="sqvae", image_size=16, base_channels=16, embed_dim=4, num_codes=32)
EMA: dict[str, Any] = dict(codebook_update="ema", sync_nu=0.0, affine_lr=0.0, alternating_steps=0)
VIT: dict[str, Any] = dict(model_type="vit", hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
GENERATOR: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_classes=3)


def tokenizer(**fields: Any) -> VQModel:
    return VQModel(VQConfig(**SMALL, **fields))


def classifier() -> VQModelForImageClassification:
    backbone = VIT | dict(image_size=16, patch_size=4, intermediate_size=24)
    return VQModelForImageClassification(
        VQImageClassificationConfig(backbone_config=backbone, image_size=16, num_labels=3)  # type: ignore[call-arg]
    )


MODELS = {
    "affine, batch norm": lambda: tokenizer(affine_lr=2.0, norm="bn"),
    "running": lambda: tokenizer(affine_mode="running", affine_lr=0.0),
    "ema": lambda: tokenizer(**EMA),
    "residual": lambda: tokenizer(quantizer_type="residual", num_groups=2),
    "fsq": lambda: VQModel(VQConfig(**SMALL | dict(quantizer_type="fsq", levels=[4, 2, 2, 2]))),
    "simvq": lambda: tokenizer(quantizer_type="simvq"),
    "ibq": lambda: tokenizer(quantizer_type="ibq"),
    "generator": lambda: MaskGitModel(MaskGitConfig(vq_config=VQConfig(**SMALL), **GENERATOR)),
    "classifier": classifier,
}


@torch.no_grad()
def use(model: Any) -> list[torch.Tensor]:
    """Results of all that a model offers."""
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    if isinstance(model, MaskGitModel):
        generator = torch.Generator().manual_seed(0)
        tokens = model.encode(pixels)
        generated = model.generate(class_labels=[0, 2], num_steps=2, generator=generator, output_type="pt")
        logits = model(image_tokens=tokens, mask=torch.zeros_like(tokens, dtype=torch.bool)).logits
        return [tokens, logits, generated.image_tokens, model.tokenizer.quantize.get_codebook()]
    if isinstance(model, VQModelForImageClassification):
        out = model(pixels)
        return [out.logits, out.image_tokens, model.quantize.get_codebook()]
    tokens = model.encode(pixels).image_tokens
    out = model(pixels)
    looked_up = [model.decode(tokens).decoded_pixel_values, model.get_codebook_entry(tokens)]
    return [tokens, out.loss, out.decoded_pixel_values, *looked_up, model.quantize.get_codebook()]


def with_cpu_offload(model: Any, folder: Path) -> Any:
    return cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"), offload_buffers=True)


def on_disk(model: Any, folder: Path) -> Any:
    device_map = {name: "disk" for name, _ in model.named_children()}
    device_map[next(iter(device_map))] = "cpu"
    return dispatch_model(copy.deepcopy(model), device_map, main_device="cpu", offload_dir=folder / "weights")


def with_little_memory(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder / "model")
    loading: dict[str, Any] = dict(max_memory={"cpu": 20_000}, offload_folder=folder / "weights")
    return type(model).from_pretrained(folder / "model", device_map="auto", **loading)


@pytest.mark.parametrize("offload", [with_cpu_offload, on_disk, with_little_memory])
@pytest.mark.parametrize("name", MODELS)
def test_offloaded_models_give_the_same(name: str, offload: Any, tmp_path: Path) -> None:
    """Tokens, pixels, logits, lookups and codebooks are those of a model in memory, to the bit."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    expected = use(model)
    offloaded = offload(model, tmp_path)

    assert any(parameter.is_meta for parameter in offloaded.parameters())
    for found, wanted in zip(use(offloaded), expected, strict=True):
        assert torch.equal(found, wanted)
