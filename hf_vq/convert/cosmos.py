"""Layout of NVIDIA's Cosmos Tokenizer of images with discrete tokens (DI).

The network reads and writes Haar wavelets of patches, and has fewer steps down than resolutions. A token is a code of
finite scalar quantization (FSQ), whose first level changes fastest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from hf_vq.convert.layout import Layout, Source

_PATCHES = {12: 2, 48: 4, 192: 8}  # of wavelets of RGB -> side of a patch
_LEVELS = [8, 8, 8, 5, 5, 5]  # of all published DI models
_BUFFERS = ("wavelets", "_arange", "_levels", "_basis", "implicit_codebook")  # which programs keep among their weights


def is_cosmos(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the first convolution reads wavelets, and no codes are stored."""
    first = weights.get("encoder.conv_in.weight")
    return (
        first is not None
        and first.ndim == 4
        and first.shape[1] in _PATCHES
        and "encoder.down.0.block.0.conv1.weight" in weights
        and "quantize.embedding.weight" not in weights
    )


def _fold(source: Source) -> None:
    weights = source.weights
    levels = weights.get("quantizer._levels")
    source.patch_size = _PATCHES[weights["encoder.conv_in.weight"].shape[1]]
    for name in [name for name in weights if name.rpartition(".")[2] in _BUFFERS]:
        del weights[name]
    conv = weights.get("quant_conv.weight")
    known = _LEVELS if levels is None else levels.int().tolist()
    if conv is not None and len(conv) != len(known):
        raise ValueError(
            f"These are weights of NVIDIA's Cosmos Tokenizer with {len(conv)} latent channels, which is no tokenizer "
            f"with discrete tokens: these have {len(known)} channels of levels (FSQ). Take a model whose name has DI."
        )
    if levels is None:
        source.assumptions.append(f"the channels have {known} levels (FSQ), as in all published models")
    # It stands for the codes until the architecture is known.
    weights["quantize.embedding.weight"] = torch.tensor(known).view(1, -1).float()


def _of_cosmos(source: Source) -> dict[str, Any]:
    weights = source.weights
    levels = weights.pop("quantize.embedding.weight").int().flatten().tolist()
    return {
        "patch_size": source.patch_size,
        "num_downsamples": sum(name.endswith(".downsample.conv.weight") for name in weights),
        "attn_resolutions": [],
        "quantizer_type": "fsq",
        "levels": levels,
        "num_codes": math.prod(levels),
    }


COSMOS = Layout(
    "cosmos",
    "encoder.conv_in.weight",
    is_cosmos,
    counts_down=False,
    fold=_fold,
    fields=_of_cosmos,
    project="https://github.com/NVIDIA/Cosmos-Tokenizer",
)
