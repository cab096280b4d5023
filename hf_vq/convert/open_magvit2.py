"""Layout of Open-MAGVIT2 (SEED-Voken): images as signs of 14 or 18 channels, by a network of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_vq.convert.folds import add_identity_projections, add_zero_biases, take_signs
from hf_vq.convert.layout import Layout, Source


def is_open_magvit2(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the names are those of Open-MAGVIT2."""
    return "decoder.adaptive.0.gamma.weight" in weights


def _fold(source: Source) -> None:
    weights = source.weights
    add_zero_biases(weights, r"^encoder\.conv_in$|\.(?:conv1|conv2|nin_shortcut)$")
    if (last := weights.get("encoder.conv_out.weight")) is not None:  # it stands for the codes
        weights["quantize.embedding.weight"] = torch.zeros(1, len(last))
    add_identity_projections(weights)
    for name in [name for name in weights if ".upsample.conv1." in name]:
        # The four pixels of a patch come one after the other there, and beside each other here.
        parts = weights[name].unflatten(0, (4, -1))
        weights[name] = parts.transpose(0, 1).flatten(0, 1).contiguous()


def _fields(source: Source) -> dict[str, Any]:
    return {"architecture": "magvit2"} | take_signs(source)


OPEN_MAGVIT2 = Layout(
    "open_magvit2",
    "decoder.adaptive.0.gamma.weight",
    is_open_magvit2,
    renames=((r"\.mid\.(\d+)\.", r".mid_block.\1."), (r"\.upsample\.", ".upsample.conv1.")),
    counts_down=False,
    fold=_fold,
    fields=_fields,
    project="https://github.com/TencentARC/SEED-Voken",
)
