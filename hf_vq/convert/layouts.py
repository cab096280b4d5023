"""The table of layouts: diffusers, taming-transformers and its descendants, LlamaGen, Janus, and others of their own.

A new layout is a row of `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from hf_vq.convert.cosmos import COSMOS, is_cosmos
from hf_vq.convert.gumbel import GUMBEL, is_gumbel
from hf_vq.convert.layout import Layout, Source, any_begins
from hf_vq.convert.maskgit_vqgan import MASKBIT, MASKGIT, is_maskbit, is_maskgit
from hf_vq.convert.open_magvit2 import OPEN_MAGVIT2, is_open_magvit2
from hf_vq.convert.rqvae import RQVAE
from hf_vq.convert.showo import SHOWO, is_showo

# A key of our exports in diffusers' configuration. diffusers writes it back. It warns about keys that it does not
# know, but not about keys that start with an underscore.
EXPORT_KEY = "_hf_vq"


def _from_diffusers_config(source: Source) -> dict[str, Any]:
    """Returns what the weights do not tell. It raises `ValueError` for what a `VQModel` lacks."""
    config = source.config
    for name, known in (
        ("_class_name", {"VQModel"}),
        ("act_fn", {"silu", "swish"}),
        ("norm_type", {"group"}),
        ("down_block_types", {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}),
        ("up_block_types", {"UpDecoderBlock2D", "AttnUpDecoderBlock2D"}),
    ):
        value = config.get(name, [])
        unknown = sorted(set([value] if isinstance(value, str) else value) - known)
        if unknown:
            raise ValueError(
                f"`{name}` of the diffusers model is {unknown[0]!r}, but a VQModel can only hold {sorted(known)}."
            )
    if "norm_num_groups" not in config:
        source.assumptions.append(
            "each group norm has 32 groups, diffusers' default; another number (`norm_num_groups`) gives other "
            "tokens, so put the `config.json` beside the weights if there is one"
        )
    return {"norm_num_groups": config.get("norm_num_groups", 32)}


def _of_taming(source: Source) -> dict[str, Any]:
    """Tells what the names leave open, unless a configuration names the class."""
    if source.config.get("Name") in ("VQModel", "VQNoDiscModel", "EMAVQ", "VQSegmentationModel", "VQModelInterface"):
        return {}
    source.assumptions.append(
        "the token of a vector is its nearest code, as in taming-transformers; IBQ (SEED-Voken) has the same names "
        "but takes the largest dot product, so its files need `--layout ibq`"
    )
    return {}


def _is_ibq(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of SEED-Voken's IBQ repositories, which hold `"Name": ["IBQ"]`."""
    name = config.get("Name")
    return "IBQ" in ([name] if isinstance(name, str) else name if isinstance(name, list) else [])


def _of_llamagen(source: Source) -> dict[str, Any]:
    """Returns whether vectors and codes have unit norm, which only a configuration tells."""
    said = source.config.get("codebook_l2_norm")
    if said is None:
        source.assumptions.append(
            "vectors and codes are normalized (`codebook_l2_norm`), LlamaGen's and Janus's default; a `config.json` "
            'with `"codebook_l2_norm": false` beside the weights says otherwise'
        )
    return {} if said is False else {"norm": "l2", "cb_norm": "l2"}


def _hold_janus_codes(source: Source) -> dict[str, Any]:
    """Returns fields for `JanusVQVAE`, which compares with the codes as they are but decodes their unit vectors.

    If that makes a difference, the codes in `weights` are widened to hold both. The vectors get zeros beside them. All
    unit vectors have the same distance from zero, so the comparison stays the same. `post_quant_conv` reads the second
    half.
    """
    weights, notes = source.weights, source.notes
    codes = weights["quantize.embedding.weight"]
    norms = codes.norm(dim=1)
    if torch.allclose(norms, torch.ones_like(norms), rtol=0, atol=1e-6):
        return {"cb_norm": "l2"}
    # The scale is near the codes' own size, for precision, and a power of two, for exactness.
    scale = 2.0 ** norms.mean().log2().round().item()
    units = torch.nn.functional.normalize(codes, dim=1)
    weights["quantize.embedding.weight"] = torch.cat([codes, scale * units], 1)
    for name in ("quant_conv.weight", "quant_conv.bias"):
        weights[name] = torch.cat([weights[name], torch.zeros_like(weights[name])])
    decode = weights["post_quant_conv.weight"]
    weights["post_quant_conv.weight"] = torch.cat([torch.zeros_like(decode), decode / scale], 1)
    notes.append(
        "the codes are decoded as if they were of unit norm, but they are not, so each of the "
        f"{codes.shape[1]}-dimensional codes became one of {2 * codes.shape[1]} dimensions, which hold what is "
        "compared and what is decoded"
    )
    return {"embed_dim": 2 * codes.shape[1]}


def _is_janus(keys: Collection[str]) -> bool:
    # The level that runs first enlarges its output, and the last one does not. Taming's up.0 runs last.
    return any_begins("encoder.down.")(keys) and any_begins("decoder.up.0.upsample.")(keys)


def _is_taming(keys: Mapping[str, torch.Tensor]) -> bool:
    others: tuple[Callable, ...] = (
        _is_janus,
        is_maskgit,
        is_maskbit,
        is_showo,
        is_cosmos,
        is_open_magvit2,
        is_gumbel,
        RQVAE.is_of,
    )
    return any_begins("encoder.down.")(keys) and not any(is_other(keys) for is_other in others)


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "taming",
            "encoder.down.0.block.0.conv1.weight",
            _is_taming,
            counts_down=False,
            fields=_of_taming,
            project="https://github.com/CompVis/taming-transformers",
        ),
        Layout(
            "ibq",
            "encoder.down.0.block.0.conv1.weight",
            _is_taming,
            counts_down=False,
            is_named_by=_is_ibq,
            fields=lambda source: {"quantizer_type": "ibq"},
            project="https://github.com/TencentARC/SEED-Voken",
        ),
        Layout(
            "janus",
            "encoder.down.0.block.0.conv1.weight",
            _is_janus,
            fields=_hold_janus_codes,
            project="https://github.com/deepseek-ai/Janus",
        ),
        Layout(
            "llamagen",
            "encoder.conv_blocks.0.res.0.conv1.weight",
            any_begins("encoder.conv_blocks."),
            renames=(
                (r"\.(?:down|up)\.(\d+)\.block\.", r".conv_blocks.\1.res."),
                (r"\.(?:down|up)\.(\d+)\.", r".conv_blocks.\1."),
                (r"\.mid\.block_1\.", ".mid.0."),
                (r"\.mid\.attn_1\.", ".mid.1."),
                (r"\.mid\.block_2\.", ".mid.2."),
            ),
            fields=_of_llamagen,
            project="https://github.com/FoundationVision/LlamaGen",
        ),
        Layout(
            "diffusers",
            "encoder.down_blocks.0.resnets.0.conv1.weight",
            any_begins("encoder.down_blocks."),
            renames=(
                (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
                (r"\.(down|up)\.(\d+)\.attn\.", r".\1_blocks.\2.attentions."),
                (r"\.(down|up)\.(\d+)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0."),
                (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
                (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
                (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
                (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
                (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
                (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
                (r"\.nin_shortcut\.", ".conv_shortcut."),
                (r"\.norm_out\.", ".conv_norm_out."),
            ),
            fields=_from_diffusers_config,
            project="https://github.com/huggingface/diffusers",
            pixel_range=None,
        ),
        MASKGIT,
        MASKBIT,
        SHOWO,
        COSMOS,
        OPEN_MAGVIT2,
        GUMBEL,
        RQVAE,
    )
}
"""Name -> layout."""
