"""Where other projects keep the weights of a `VQModel`: their names, their variants, and what cannot be held.

A layout is a function from our names to its names. So one description serves both directions and the inference of the
architecture. Our names are those of taming-transformers, except for the codebook's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_vq.utils.text import shorten

# A key of our exports in diffusers' configuration. diffusers writes it back. It warns about keys that it does not
# know, but not about keys that start with an underscore.
EXPORT_KEY = "_hf_vq"

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """Where a project keeps the weights of a `VQModel`. A new one is a row of `LAYOUTS`.

    Attributes:
        name: What `layout=` says.
        example: A name that a file in this layout holds.
        is_of: Whether names of weights are in this layout and in no other.
        renames: Patterns and replacements, applied to our names one after the other.
        counts_down: Whether the levels of the decoder are numbered in the order in which they run.
        fields: From the weights, which it may change, and the notes, to which it may add, to fields of `VQConfig` that
            names and shapes do not tell.
        source_fields: Likewise from the configuration beside the weights.
    """

    name: str
    example: str
    is_of: Callable[[Collection[str]], bool]
    renames: tuple[tuple[str, str], ...] = ()
    counts_down: bool = True
    fields: Callable[[Weights, list[str]], dict[str, Any]] = lambda weights, notes: {}
    source_fields: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}


def _any_begins(prefix: str) -> Callable[[Collection[str]], bool]:
    return lambda keys: any(key.startswith(prefix) for key in keys)


_OLD_DIFFUSERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# Regular expressions of what a file may hold beside the weights of encoder, decoder and codebook.
_TRAINING_ONLY = {
    r"loss\.": "the discriminator and the perceptual network of the training loss",
    r"quantize\.embedding\.(?:cluster_size|embed_avg)$": "moving averages of an EMA codebook's training",
    r"quantize\.codebook_used$": "a record of recently used codes",
}
_REFUSED = {
    r"quantize\.(?:embed\.|proj\.)": "a Gumbel-softmax quantizer, which takes the code of the largest logit, not the "
    "nearest one. A VQModel cannot hold it; choose another checkpoint",
    r"quantize\.used$": "a remapping of its tokens (`remap`) to a part of the codebook. Load the model without it",
    r"decoder\..*\.(?:conv_y|conv_b)\.": "spatially conditioned norms in the decoder (MoVQ), which need the codes at "
    "every layer. A VQModel cannot hold them; choose another checkpoint",
}


def foreign_key(key: str, layout: str, num_levels: int) -> str:
    """Returns the name that `key` of a `VQModel` with `num_levels` resolutions has in a layout."""
    if LAYOUTS[layout].counts_down:
        key = re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{num_levels - 1 - int(found[1])}", key)
    key = key.replace("quantize.codebook.", "quantize.embedding.")
    for pattern, replacement in LAYOUTS[layout].renames:
        key = re.sub(pattern, replacement, key)
    return key


def detect_layout(keys: Collection[str]) -> str:
    """Finds the layout of names.

    Args:
        keys: Names of weights.

    Returns:
        One of `LAYOUTS`.

    Raises:
        ValueError: If no layout fits. If the names look like something else that is known, the message says so.
    """
    if any(key.startswith("quantize.codebook.") for key in keys):
        raise ValueError("These are weights of hf_vq itself. Load them with `VQModel.from_pretrained`.")
    if "codebook.weight" in keys:
        raise ValueError(
            "These are weights of a vqtorch layer, without encoder and decoder. Load them into a layer of the same "
            "settings with `load_vqtorch_state_dict`."
        )
    if any(re.search(r"(?:^|\.)_codebook\.embed$", key) for key in keys):
        raise ValueError(
            "These are weights of a layer of vector-quantize-pytorch. `convert_vector_quantize_pytorch` reads them, "
            "with the arguments that the layer was built with. No `VQModel` can be made of the networks around it."
        )
    for layout in LAYOUTS.values():
        if layout.is_of(keys):
            return layout.name
    expected = ", ".join(f"{layout.example!r} ({layout.name})" for layout in LAYOUTS.values())
    raise ValueError(
        f"No known layout has these names. Expected names like {expected}, got {shorten(sorted(keys), quoted=True)}."
    )


def select_weights(
    state_dict: Mapping[str, torch.Tensor], use_ema: bool = False
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Selects the weights of encoder, decoder and codebook from those of a file.

    Args:
        state_dict: Mapping from names to tensors. The tokenizer may be a part of a larger model, with a common prefix.
        use_ema: Whether to take the averaged weights that latent diffusion's training keeps as `model_ema.*`.

    Returns:
        The weights without the prefix, with old names of diffusers brought up to date, and one sentence for each kind
        of thing that was left out.

    Raises:
        ValueError: If there are several tokenizers, a kind of tokenizer that cannot be held, or no averaged weights to
            take.
    """
    notes = []
    entry = "encoder.conv_in.weight"
    prefixes = [key.removesuffix(entry) for key in state_dict if key == entry or key.endswith("." + entry)]
    if len(prefixes) > 1:
        raise ValueError(
            f"Found {len(prefixes)} tokenizers, at {shorten(prefixes, quoted=True)}, but expected one. Keep only the "
            "names of one."
        )
    prefix = prefixes[0] if prefixes else ""
    weights = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    if prefix:
        notes.append(f"took the tokenizer at {prefix!r}, left out {len(state_dict) - len(weights):,} other tensors")

    averaged = {key: weights.pop(key) for key in list(weights) if key.startswith("model_ema.")}
    if use_ema:
        names = {averaged_key(key): key for key in weights}
        found = {names[key]: value for key, value in averaged.items() if key in names}
        if not found:
            raise ValueError(
                "`use_ema` was asked for, but the file holds no averaged weights (`model_ema.*`). Leave `use_ema` out."
            )
        weights |= found
        notes.append(f"took the averaged weights (`model_ema.*`) of {len(found):,} tensors")
    elif averaged:
        notes.append(f"left out {len(averaged):,} averaged weights (`model_ema.*`); `use_ema` takes these instead")

    for pattern, reason in _REFUSED.items():
        if any(re.match(pattern, key) for key in weights):
            raise ValueError(f"This checkpoint has {reason}.")
    for pattern, reason in _TRAINING_ONLY.items():
        dropped = [key for key in weights if re.match(pattern, key)]
        for key in dropped:
            del weights[key]
        if dropped:
            notes.append(f"left out {reason} ({len(dropped):,} tensors, {dropped[0]!r} the first)")
    old = re.compile(rf"(attentions\.\d+)\.({'|'.join(_OLD_DIFFUSERS)})\.")
    return {old.sub(lambda m: f"{m[1]}.{_OLD_DIFFUSERS[m[2]]}.", key): value for key, value in weights.items()}, notes


def averaged_key(key: str) -> str:
    """Returns the name of a weight's moving average in latent diffusion's checkpoints."""
    return "model_ema." + key.replace(".", "")


def infer_architecture(
    weights: Mapping[str, torch.Tensor], layout: str, image_size: int | None, source_config: Mapping[str, Any]
) -> dict[str, Any]:
    """Finds the fields of `VQConfig` from names and shapes, and from the configuration where these do not tell.

    Args:
        weights: Weights from `select_weights`.
        layout: One of `LAYOUTS`.
        image_size: Side of the images. With None it is what the configuration says, or 256.
        source_config: Configuration of diffusers' `VQModel` or of transformers' `JanusVQVAE`, or an empty mapping.

    Returns:
        Fields of `VQConfig`.

    Raises:
        ValueError: If a tensor that tells the shape is missing, or if the architecture has no counterpart.
    """
    num_levels = 0
    while foreign_key(f"encoder.down.{num_levels}.block.0.conv1.weight", layout, 0) in weights:
        num_levels += 1

    def shape(key: str) -> torch.Size:
        name = foreign_key(key, layout, num_levels)
        if name not in weights:
            why = " Without a codebook it is a continuous autoencoder." if key.startswith("quantize.") else ""
            raise ValueError(f"{name!r} is missing from this checkpoint of the layout {layout!r}.{why}")
        return weights[name].shape

    def count(pattern: str) -> int:
        number = 0
        while foreign_key(pattern.format(number), layout, num_levels) in weights:
            number += 1
        return number

    base_channels, num_channels = shape("encoder.conv_in.weight")[:2]
    widths = [shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(num_levels)]
    if not widths or any(width % base_channels for width in widths):
        raise ValueError(
            f"The width of each resolution must be a multiple of the first layer's, {base_channels}, got {widths}."
        )
    num_codes, embed_dim = shape("quantize.codebook.weight")
    latent_channels = shape("quant_conv.weight")[1]
    out_channels = shape("decoder.conv_out.weight")[0]
    if out_channels != num_channels:
        raise ValueError(
            f"The images that come out must have as many channels as those that go in, got {out_channels} and "
            f"{num_channels}. A VQModel cannot hold this model."
        )
    factor = 2 ** (num_levels - 1)
    if image_size is None:
        image_size = _image_size_of(source_config, factor)
    attention = [level for level in range(num_levels) if count(f"encoder.down.{level}.attn.{{}}.q.weight")]
    architecture = {
        "image_size": image_size,
        "num_channels": num_channels,
        "base_channels": base_channels,
        "channel_multiplier": [width // base_channels for width in widths],
        "num_res_blocks": count("encoder.down.0.block.{}.conv1.weight"),
        "attn_resolutions": [image_size >> level for level in attention],
        "mid_block_add_attention": foreign_key("encoder.mid.attn_1.q.weight", layout, num_levels) in weights,
        "latent_channels": latent_channels,
        "embed_dim": embed_dim,
        "num_codes": num_codes,
    }
    return architecture | LAYOUTS[layout].source_fields(source_config)


def _image_size_of(source_config: Mapping[str, Any], factor: int) -> int:
    if "num_patches" in source_config:
        return int(source_config["num_patches"]) * factor
    # diffusers itself does not use `sample_size` and often leaves it at its default of 32.
    return int(source_config["sample_size"]) if EXPORT_KEY in source_config else 256


def _from_diffusers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the weights do not tell. It raises `ValueError` for what a `VQModel` lacks."""
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
    return {"norm_num_groups": config.get("norm_num_groups", 32)}


def _hold_janus_codes(weights: Weights, notes: list[str]) -> dict[str, Any]:
    """Returns fields for `JanusVQVAE`, which compares with the codes as they are but decodes their unit vectors.

    If that makes a difference, the codes in `weights` are widened to hold both. The vectors get zeros beside them. All
    unit vectors have the same distance from zero, so the comparison stays the same. `post_quant_conv` reads the second
    half.
    """
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
    return _any_begins("encoder.down.")(keys) and _any_begins("decoder.up.0.upsample.")(keys)


def _is_taming(keys: Collection[str]) -> bool:
    return _any_begins("encoder.down.")(keys) and not _is_janus(keys)


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("taming", "encoder.down.0.block.0.conv1.weight", _is_taming, counts_down=False),
        Layout("janus", "encoder.down.0.block.0.conv1.weight", _is_janus, fields=_hold_janus_codes),
        Layout(
            "llamagen",
            "encoder.conv_blocks.0.res.0.conv1.weight",
            _any_begins("encoder.conv_blocks."),
            renames=(
                (r"\.(?:down|up)\.(\d+)\.block\.", r".conv_blocks.\1.res."),
                (r"\.(?:down|up)\.(\d+)\.", r".conv_blocks.\1."),
                (r"\.mid\.block_1\.", ".mid.0."),
                (r"\.mid\.attn_1\.", ".mid.1."),
                (r"\.mid\.block_2\.", ".mid.2."),
            ),
            fields=lambda weights, notes: {"norm": "l2", "cb_norm": "l2"},
        ),
        Layout(
            "diffusers",
            "encoder.down_blocks.0.resnets.0.conv1.weight",
            _any_begins("encoder.down_blocks."),
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
            source_fields=_from_diffusers_config,
        ),
    )
}
"""Name -> layout."""
