"""What other networks do differently, written as weights of a `VQModel` that computes the same."""

from __future__ import annotations

import re
from typing import Any

import torch

from hf_vq.convert.layout import Layout, Source, Weights


def add_zero_biases(weights: Weights, pattern: str) -> None:
    """Gives convolutions without a bias one of zeros, those whose name without `.weight` matches the pattern."""
    for name in [key.removesuffix(".weight") for key in weights if key.endswith(".weight")]:
        if re.search(pattern, name):
            weights.setdefault(f"{name}.bias", torch.zeros(len(weights[f"{name}.weight"])))


def absorb_late_shortcuts(weights: Weights) -> None:
    """Folds shortcuts that read the output of the other branch instead of the block's input.

    Then the block computes `h + S h` of `h = W2 g`, and its input takes no part: the second convolution becomes
    `(1 + S) W2`, and the shortcut zero.
    """
    for name in [key for key in weights if key.endswith("nin_shortcut.weight")]:
        conv = name.replace("nin_shortcut", "conv2")
        shortcut, before = weights[name].double().flatten(1), weights.get(name.replace("nin_shortcut", "conv1"))
        if conv not in weights or before is None:
            continue  # the comparison of names tells what is missing
        second = weights[conv].double()
        weights[conv] = (second + torch.einsum("ij,jkhw->ikhw", shortcut, second)).float()
        weights[name] = torch.zeros(len(shortcut), before.shape[1], 1, 1)


def add_pooling(weights: Weights, name: str, channels: int) -> None:
    """Writes average pooling of 2 x 2 pixels as a strided 3 x 3 convolution that pads on the right and the bottom."""
    kernel = torch.zeros(channels, channels, 3, 3)
    kernel[range(channels), range(channels), :2, :2] = 0.25
    weights[name], weights[name.replace(".weight", ".bias")] = kernel, torch.zeros(channels)


def take_signs(source: Source, order: str = "lowest first") -> dict[str, Any]:
    """Returns fields for lookup-free codes, a list of which stands for the codebook until here.

    Args:
        source: Its codes are left out of the weights.
        order: Of the bits, as the note says it.
    """
    bits = source.weights.pop("quantize.embedding.weight").shape[1]
    source.notes.append(f"tokens are the signs of {bits} channels (lookup-free), as bits, the {order}")
    return {"quantizer_type": "lfq", "num_codes": 2**bits}


def center_kernel(weights: Weights, name: str) -> None:
    """Makes a 1 x 1 kernel the middle of a 3 x 3 one."""
    if name in weights and weights[name].shape[2:] == (1, 1):
        weights[name] = torch.nn.functional.pad(weights[name], (1, 1, 1, 1))


def add_identity_projections(weights: Weights) -> None:
    """Gives a network without `quant_conv` and `post_quant_conv` two that change nothing."""
    if (codes := weights.get("quantize.embedding.weight")) is None:
        return
    for name in ("quant_conv", "post_quant_conv"):
        weights[f"{name}.weight"] = torch.eye(codes.shape[1])[:, :, None, None]
        weights[f"{name}.bias"] = torch.zeros(codes.shape[1])


def add_idle_blocks(source: Source, layout: Layout) -> None:
    """Gives all levels of the encoder one number of residual blocks, and those of the decoder one more.

    What is missing is filled with blocks that add nothing: their second convolution is zero. The first is the
    identity, so that training can bring them to life.
    """
    weights, num_levels = source.weights, layout.count_levels(source.weights)
    blocks = "{}.{}.block.{{}}.conv1.weight"
    stacks = {
        part: [layout.count(weights, blocks.format(part, level), num_levels) for level in range(num_levels)]
        for part in ("encoder.down", "decoder.up")
    }
    if not all(map(all, stacks.values())):
        return  # the comparison of names tells what is missing
    most = max(*stacks["encoder.down"], max(stacks["decoder.up"]) - 1)
    added = 0
    for part, counts in stacks.items():
        for level, count in enumerate(counts):
            last = layout.key(f"{part}.{level}.block.{count - 1}.conv1.weight", num_levels)
            for block in range(count, most + (part == "decoder.up")):
                name = layout.key(f"{part}.{level}.block.{block}", num_levels)
                _add_idle_block(weights, name, len(weights[last]))
                added += 1
    if added:
        source.notes.append(
            f"added {added} residual blocks that change nothing, since a VQModel has equally many at all resolutions, "
            "in its decoder one more than in its encoder; they cost some time"
        )


def _add_idle_block(weights: Weights, name: str, channels: int) -> None:
    for norm in ("norm1", "norm2"):
        weights[f"{name}.{norm}.weight"], weights[f"{name}.{norm}.bias"] = torch.ones(channels), torch.zeros(channels)
    for conv in ("conv1", "conv2"):
        weights[f"{name}.{conv}.weight"] = torch.zeros(channels, channels, 3, 3)
        weights[f"{name}.{conv}.bias"] = torch.zeros(channels)
    torch.nn.init.dirac_(weights[f"{name}.conv1.weight"])
