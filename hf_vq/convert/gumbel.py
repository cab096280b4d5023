"""Layout of taming-transformers' VQGAN with a Gumbel-softmax quantizer: a token is the largest of as many logits."""

from __future__ import annotations

from collections.abc import Collection

import torch

from hf_vq.convert.layout import Layout, Source


def is_gumbel(keys: Collection[str]) -> bool:
    """Whether the names are those of a VQGAN with logits in place of distances."""
    return "quantize.proj.weight" in keys and "quantize.embed.weight" in keys


def _fold(source: Source) -> None:
    """Makes the largest logit the largest dot product, as IBQ takes it.

    A code becomes the row of the logits' map, its bias, and the vector that is decoded. The vectors get a one beside
    them, and zeros. `post_quant_conv` reads the last part.
    """
    weights = source.weights
    names = ("quant_conv.weight", "quant_conv.bias", "post_quant_conv.weight", "quantize.proj.bias")
    if not all(name in weights for name in names):
        return  # the comparison of names tells what is missing
    conv, conv_bias, decode, bias = (weights[name] for name in names)
    rows, codes = (weights.pop(f"quantize.{name}.weight").flatten(1) for name in ("proj", "embed"))
    del weights["quantize.proj.bias"]
    weights["quantize.embedding.weight"] = torch.cat([rows, bias[:, None], codes], 1)
    further = 1 + codes.shape[1]
    weights["quant_conv.weight"] = torch.cat([conv, conv.new_zeros(further, *conv.shape[1:])])
    weights["quant_conv.bias"] = torch.cat([conv_bias, torch.eye(further)[0]])
    weights["post_quant_conv.weight"] = torch.cat([decode.new_zeros(len(decode), rows.shape[1] + 1, 1, 1), decode], 1)
    source.notes.append(
        "a token is the largest of the logits, the most likely one; the original draws tokens by these logits. Each "
        f"code became one of {weights['quantize.embedding.weight'].shape[1]} dimensions, which hold the row of the "
        "logits' map, its bias, and what is decoded"
    )


GUMBEL = Layout(
    "gumbel",
    "quantize.proj.weight",
    is_gumbel,
    counts_down=False,
    fold=_fold,
    fields=lambda source: {"quantizer_type": "ibq"},
    project="https://github.com/CompVis/taming-transformers",
)
