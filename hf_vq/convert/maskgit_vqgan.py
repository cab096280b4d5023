"""Layouts of the MaskGIT tokenizer's family: networks without attention whose blocks have late shortcuts.

`maskgit` is the PyTorch version of MaskGIT's VQGAN in open-muse, which TiTok, RAR and others use. `maskbit` is VQGAN+
and MaskBit, with the same blocks under other names, and lookup-free codes. Both train with pixels in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from hf_vq.convert.folds import (
    absorb_late_shortcuts,
    add_identity_projections,
    add_idle_blocks,
    add_pooling,
    add_zero_biases,
    center_kernel,
    take_signs,
)
from hf_vq.convert.layout import Layout, Source, any_begins
from hf_vq.modeling.pixel_range_vq import UNIT

_WITHOUT_BIAS = r"^encoder\.conv_in$|\.(?:conv1|conv2|nin_shortcut)$"


def is_maskgit(keys: Collection[str]) -> bool:
    """Whether the names are those of MaskGIT's VQGAN."""
    return any(re.match(r"encoder\.down\.\d+\.block\.", key) for key in keys) and any_begins("encoder.mid.0.")(keys)


def _fold_pooled(source: Source, layout: Layout) -> None:
    weights = source.weights
    for level in range(layout.count_levels(weights) - 1):
        block = layout.count(weights, f"encoder.down.{level}.block.{{}}.conv1.weight") - 1
        if block >= 0:
            conv = weights[layout.key(f"encoder.down.{level}.block.{block}.conv1.weight", 0)]
            add_pooling(weights, layout.key(f"encoder.down.{level}.downsample.conv.weight", 0), len(conv))
    _fold_blocks(source, layout)


def is_maskbit(keys: Collection[str]) -> bool:
    """Whether the names are those of VQGAN+ and MaskBit."""
    return any_begins("encoder.down.0.res_blocks.")(keys)


def _fold_maskbit(source: Source) -> None:
    weights = source.weights
    num_levels = MASKBIT.count_levels(weights)
    if "decoder.up.0.upsample_conv.weight" not in weights:  # its older files number the levels by resolution
        for key in [key for key in weights if key.startswith("decoder.up.")]:
            level, _, rest = key.removeprefix("decoder.up.").partition(".")
            weights[f"decoder.flipped.{num_levels - 1 - int(level)}.{rest}"] = weights.pop(key)
        for key in [key for key in weights if key.startswith("decoder.flipped.")]:
            weights[key.replace("flipped", "up")] = weights.pop(key)
    if (signs := weights.pop("quantize.codebook", None)) is not None:
        weights["quantize.embedding.weight"] = signs
    if any_begins("encoder.down.0.down_conv.")(weights):
        _fold_blocks(source, MASKBIT)
    else:
        _fold_pooled(source, MASKBIT)


def _of_maskbit(source: Source) -> dict[str, Any]:
    if source.weights.pop("quantize.bits_to_indices", None) is not None:
        return take_signs(source)
    source.assumptions.append(
        "codes are compared as they are, as in all of the project's configurations (`use_l2_normalisation` is off)"
    )
    return {}


def _fold_blocks(source: Source, layout: Layout) -> None:
    weights = source.weights
    absorb_late_shortcuts(weights)
    add_zero_biases(weights, _WITHOUT_BIAS)
    center_kernel(weights, "encoder.conv_out.weight")
    add_identity_projections(weights)
    add_idle_blocks(source, layout)


MASKGIT: Layout = Layout(
    "maskgit",
    "encoder.mid.0.conv1.weight",
    is_maskgit,
    renames=(
        (r"\.mid\.block_1\.", ".mid.0."),
        (r"\.mid\.block_2\.", ".mid.1."),
        (r"\.upsample\.conv\.", ".upsample_conv."),
    ),
    counts_down=False,
    fold=lambda source: _fold_pooled(source, MASKGIT),
    pixel_range=UNIT,
    project="https://github.com/huggingface/open-muse",
)
MASKBIT: Layout = Layout(
    "maskbit",
    "encoder.down.0.res_blocks.0.conv1.weight",
    is_maskbit,
    renames=(
        (r"\.block\.", ".res_blocks."),
        (r"\.mid\.block_1\.", ".mid.res_blocks.0."),
        (r"\.mid\.block_2\.", ".mid.res_blocks.1."),
        (r"\.downsample\.conv\.", ".down_conv."),
        (r"\.upsample\.conv\.", ".upsample_conv."),
    ),
    fold=_fold_maskbit,
    fields=_of_maskbit,
    pixel_range=UNIT,
    project="https://github.com/markweberdev/maskbit",
)
