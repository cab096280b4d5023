"""Layout of the MAGVITv2 tokenizer of Show-o, which MMaDA uses, too.

Encoder and decoder have other widths and other numbers of blocks at each resolution. A token is a number of 13 bits,
the signs of the channels, the highest bit first.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hf_vq.convert.folds import add_idle_blocks, take_signs
from hf_vq.convert.layout import Layout, Source


def is_showo(keys: Collection[str]) -> bool:
    """Whether the names are those of Show-o's MAGVITv2."""
    return "encoder.quant_conv.weight" in keys


def _fold(source: Source) -> None:
    weights = source.weights
    if (signs := weights.pop("quantize.embedding", None)) is not None:
        weights["quantize.embedding.weight"] = signs
    # The highest bit comes first there, and last in a VQModel.
    for name, axis in (
        ("encoder.quant_conv.weight", 0),
        ("encoder.quant_conv.bias", 0),
        ("decoder.post_quant_conv.weight", 1),
    ):
        if name in weights:
            weights[name] = weights[name].flip(axis)
    add_idle_blocks(source, SHOWO)


def _of_showo(source: Source) -> dict[str, Any]:
    source.weights.pop("quantize.power_vals", None)
    return take_signs(source, "highest first, which reversed channels make")


SHOWO: Layout = Layout(
    "showo",
    "encoder.quant_conv.weight",
    is_showo,
    renames=((r"^quant_conv\.", "encoder.quant_conv."), (r"^post_quant_conv\.", "decoder.post_quant_conv.")),
    counts_down=False,
    fold=_fold,
    fields=_of_showo,
    project="https://github.com/showlab/Show-o",
)
