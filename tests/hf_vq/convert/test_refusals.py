"""What cannot be converted is named, with the reason and what to do instead."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, Emu3VQVAE, Emu3VQVAEConfig

from hf_vq.convert.checkpoints import convert_state_dict

REFERENCES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("vqgan_references.py"))))


def emu3() -> Any:
    """transformers' class, small."""
    sizes: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1}
    return Emu3VQVAE(Emu3VQVAEConfig(**sizes, attn_resolutions=[1], codebook_size=64))


def chameleon() -> Any:
    """transformers' class, small."""
    sizes: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1}
    return ChameleonVQVAE(ChameleonVQVAEConfig(**sizes, latent_channels=8, embed_dim=8, num_embeddings=64))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (emu3, "Emu3's vision tokenizer.*made for video.*`Emu3VQVAE` runs it"),
        (chameleon, "transformers' Chameleon.*has no decoder.*`vqgan.ckpt`"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.vqmodel."])
def test_classes_of_transformers_are_refused_by_name(make: Any, words: str, prefix: str) -> None:
    """Alone, or as a part of the whole model."""
    state = {prefix + key: value for key, value in make().state_dict().items()}
    with pytest.raises(ValueError, match=words):
        convert_state_dict(state)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encoder.conv_in.0.conv3d.weight", "Cosmos Tokenizer of videos.*whose name has DI"),
        ("quantize.quant_resi.qresi_ls.0.weight", "VAR's.*pyramid"),
        ("latent_tokens", "TiTok.*`maskgit-vqgan-imagenet-f16-256.bin`, can be"),
        ("encoder.blocks.group_1.block_1.res_path.conv_1.w", "DALL-E.*largest of 8,192 logits"),
        ("decoder.up.0.block.0.norm1.conv_y.weight", "MoVQ.*spatially conditioned norms"),
    ],
)
def test_projects_are_known_by_a_name(name: str, words: str) -> None:
    """Also where all other names are those of taming-transformers."""
    with pytest.raises(ValueError, match=f"These are weights of .*{words}"):
        convert_state_dict(REFERENCES.Taming().state_dict() | {name: torch.zeros(1)})


def test_a_network_without_codes_is_told_of() -> None:
    """It may be continuous, or its codes may stand in no file."""
    state = REFERENCES.Taming().state_dict()
    del state["quantize.embedding.weight"]
    with pytest.raises(ValueError, match="lookup-free .LFQ. and of finite scalar quantization .FSQ."):
        convert_state_dict(state)


def test_codes_without_networks_are_refused() -> None:
    """As transformers' GLM-Image has them."""
    names = ("quantize.embedding.weight", "quant_conv.weight", "quant_conv.bias")
    with pytest.raises(ValueError, match="GLM-Image.*neither an encoder of pixels nor a decoder"):
        convert_state_dict({f"model.vqmodel.{name}": torch.zeros(2, 2) for name in names})
