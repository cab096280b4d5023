"""What is known but cannot be converted: each project by its name, with the reason and what to do instead."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

# A regular expression of names that only this project's files hold, the project, and why a `VQModel` cannot hold it.
_BY_NAME = (
    (
        r"(?:^|\.)transformer\.layers\.\d+\.attn\.wq\.weight$",
        "a generator of Halton-MaskGIT",
        "Convert it with `--tokenizer`, the folder or the file of the tokenizer that it was trained on",
    ),
    (
        r"(?:^|\.)(?:en|de)coder\.time_(?:conv|res_stack)\.",
        "Emu3's vision tokenizer",
        "It is made for video: it has convolutions over time, and its decoder reads the codes at every layer (MoVQ). "
        "transformers' `Emu3VQVAE` runs it",
    ),
    (
        r"(?:^|\.)encoder\.conv_in\.0\.conv3d\.",
        "NVIDIA's Cosmos Tokenizer of videos",
        "It has convolutions over time. Of its models, those whose name has DI can be converted",
    ),
    (
        r"(?:^|\.)quantize\.quant_resi\.",
        "VAR's multi-scale tokenizer",
        "Its tokens are a pyramid of grids from 1 x 1 on, each of the rest that the smaller ones leave. A VQModel has "
        "one grid",
    ),
    (
        r"(?:^|\.)(?:latent_tokens|decoder\.mask_token)$",
        "TiTok or another 1-D tokenizer",
        "Its tokens are a sequence without places in the image, made by transformers. A VQModel has a grid of them "
        "and convolutions. The tokenizer that TiTok was trained on, `maskgit-vqgan-imagenet-f16-256.bin`, can be "
        "converted",
    ),
    (
        r"(?:^|\.)blocks\.group_\d+\.block_\d+\.",
        "DALL-E's discrete VAE",
        "Its token is the largest of 8,192 logits, not the nearest code, and its network has another shape",
    ),
    (
        r"(?:^|\.)decoder\..*\.(?:conv_y|conv_b)\.",
        "MoVQ, Kandinsky's tokenizer",
        "Its decoder has spatially conditioned norms, which need the codes at every layer. diffusers' `VQModel` runs "
        "it",
    ),
)


def refuse_known_projects(weights: Mapping[str, torch.Tensor]) -> None:
    """Raises a `ValueError` that names the project, if these weights are of one that a `VQModel` cannot hold."""
    for pattern, project, reason in _BY_NAME:
        if any(re.search(pattern, key) for key in weights):
            _refuse(project, reason)
    names = weights.keys()
    has_codes = any(key.endswith("quantize.embedding.weight") for key in names)
    if has_codes and not any("decoder." in key for key in names):
        if any("encoder.conv_in." in key for key in names):
            _refuse(
                "transformers' Chameleon",
                "It has no decoder, which transformers leaves out. Convert Meta's own file, `vqgan.ckpt` of the "
                "tokenizer's folder, which has both",
            )
        _refuse(
            "transformers' GLM-Image, or another tokenizer of features",
            "It has codes but neither an encoder of pixels nor a decoder",
        )


def why_there_are_no_codes(weights: Mapping[str, torch.Tensor]) -> str:
    """Tells what a network without a codebook is, as far as its shapes show."""
    ends = (("quant_conv", "post_quant_conv"), ("encoder.conv_out", "decoder.conv_in"))
    for before, after in ((weights.get(f"{first}.weight"), weights.get(f"{last}.weight")) for first, last in ends):
        if before is not None and after is not None and len(before) == 2 * after.shape[1]:
            return "It is a continuous autoencoder: its encoder gives a mean and a variance for each value."
    return (
        "It is a continuous autoencoder, or its codes stand in no file, as those of lookup-free (LFQ) and of finite "
        "scalar quantization (FSQ)."
    )


def _refuse(project: str, reason: str) -> None:
    raise ValueError(f"These are weights of {project}, which a VQModel cannot hold. {reason}.")
