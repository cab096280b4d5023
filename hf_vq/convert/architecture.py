"""What a file of weights holds: its layout, the weights that count, and the architecture behind their shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from hf_vq.convert.layout import Source
from hf_vq.convert.layouts import EXPORT_KEY, LAYOUTS
from hf_vq.convert.refusals import refuse_known_projects, why_there_are_no_codes
from hf_vq.utils.text import shorten

_OLD_DIFFUSERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# Regular expressions of what a file may hold beside the weights of encoder, decoder and codebook.
_TRAINING_ONLY = {
    r"loss\.": "the discriminator and the perceptual network of the training loss",
    r"quantize\.embedding\.(?:cluster_size|embed_avg)$": "moving averages of an EMA codebook's training",
    r"quantize\.codebook_used$": "a record of recently used codes",
    r"colorize$": "random colors for maps of classes",
}


def detect_layout(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None) -> str:
    """Finds the layout of weights.

    Args:
        weights: Tensors by name.
        config: The configuration beside them, which decides between layouts of the same names.

    Returns:
        One of `LAYOUTS`.

    Raises:
        ValueError: If no layout fits. If the names look like something else that is known, the message says so.
    """
    if any(key.startswith("quantize.codebook.") for key in weights):
        raise ValueError("These are weights of hf_vq itself. Load them with `VQModel.from_pretrained`.")
    if "codebook.weight" in weights:
        raise ValueError(
            "These are weights of a vqtorch layer, without encoder and decoder. Load them into a layer of the same "
            "settings with `load_vqtorch_state_dict`."
        )
    if any(re.search(r"(?:^|\.)_codebook\.embed$", key) for key in weights):
        raise ValueError(
            "These are weights of a layer of vector-quantize-pytorch. `convert_vector_quantize_pytorch` reads them, "
            "with the arguments that the layer was built with. No `VQModel` can be made of the networks around it."
        )
    fitting = [layout for layout in LAYOUTS.values() if layout.is_of(weights)]
    for layout in [layout for layout in fitting if layout.is_named_by(config or {})] + fitting:
        return layout.name
    expected = ", ".join(f"{layout.example!r} ({layout.name})" for layout in LAYOUTS.values())
    raise ValueError(
        f"No known layout has these names. Expected names like {expected}, got "
        f"{shorten(sorted(weights), quoted=True)}."
    )


def select_weights(
    state_dict: Mapping[str, torch.Tensor], use_ema: bool = False, prefix: str | None = None
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Selects the weights of encoder, decoder and codebook from those of a file.

    Args:
        state_dict: Mapping from names to tensors. The tokenizer may be a part of a larger model, with a common prefix.
        use_ema: Whether to take the averaged weights that latent diffusion's training keeps as `model_ema.*`.
        prefix: What the names of the tokenizer begin with. With None the file must hold one tokenizer.

    Returns:
        The weights without the prefix, with old names of diffusers brought up to date, and one sentence for each kind
        of thing that was left out.

    Raises:
        ValueError: If there are several tokenizers, a kind of tokenizer that cannot be held, or no averaged weights to
            take.
    """
    weights, notes = _take_prefix(state_dict, prefix)
    refuse_known_projects(weights)
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

    if "quantize.used" in weights:
        raise ValueError(
            "This checkpoint has a remapping of its tokens (`remap`) to a part of the codebook. Load the model "
            "without it."
        )
    for pattern, reason in _TRAINING_ONLY.items():
        dropped = [key for key in weights if re.match(pattern, key)]
        for key in dropped:
            del weights[key]
        if dropped:
            notes.append(f"left out {reason} ({len(dropped):,} tensors, {dropped[0]!r} the first)")
    old = re.compile(rf"(attentions\.\d+)\.({'|'.join(_OLD_DIFFUSERS)})\.")
    return {old.sub(lambda m: f"{m[1]}.{_OLD_DIFFUSERS[m[2]]}.", key): value for key, value in weights.items()}, notes


def _take_prefix(
    state_dict: Mapping[str, torch.Tensor], prefix: str | None
) -> tuple[dict[str, torch.Tensor], list[str]]:
    entry = "encoder.conv_in.weight"
    prefixes = [key.removesuffix(entry) for key in state_dict if key == entry or key.endswith("." + entry)]
    if prefix is None and len(prefixes) > 1:
        raise ValueError(
            f"Found {len(prefixes)} tokenizers, at {shorten(prefixes, quoted=True)}, but expected one. Choose one "
            "with `--prefix`."
        )
    if prefix is None:
        prefix = prefixes[0] if prefixes else ""
    elif prefix and not prefix.endswith("."):
        prefix += "."
    weights = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    if not weights:
        found = f"Tokenizers are at {shorten(prefixes, quoted=True)}." if prefixes else "There is none at any other."
        raise ValueError(f"No name begins with the prefix {prefix!r}. {found}")
    if len(weights) == len(state_dict):
        return weights, []
    return weights, [f"took the tokenizer at {prefix!r}, left out {len(state_dict) - len(weights):,} other tensors"]


def averaged_key(key: str) -> str:
    """Returns the name of a weight's moving average in latent diffusion's checkpoints."""
    return "model_ema." + key.replace(".", "")


def infer_architecture(source: Source, layout: str, image_size: int | None) -> dict[str, Any]:
    """Finds the fields of `VQConfig` from names and shapes, and from the configuration where these do not tell.

    Args:
        source: Weights from `select_weights`, with the configuration of diffusers' `VQModel`, of transformers'
            `JanusVQVAE` or of LlamaGen's tokenizer, if there is one.
        layout: One of `LAYOUTS`.
        image_size: Side of the images. With None it is what the configuration says, or 256.

    Returns:
        Fields of `VQConfig`.

    Raises:
        ValueError: If a tensor that tells the shape is missing, or if the architecture has no counterpart.
    """
    row, weights = LAYOUTS[layout], source.weights
    num_levels = row.count_levels(weights)

    def shape(key: str) -> torch.Size:
        name = row.key(key, num_levels)
        if name not in weights:
            why = f" {why_there_are_no_codes(weights)}" if key.startswith("quantize.") else ""
            raise ValueError(f"{name!r} is missing from this checkpoint of the layout {layout!r}.{why}")
        return weights[name].shape

    if len(shape("encoder.conv_in.weight")) != 4:
        raise ValueError("The first convolution of this network reads videos. A VQModel is for images.")
    base_channels, num_channels = shape("encoder.conv_in.weight")[:2]
    num_channels //= source.patch_size**2
    widths, decoder_widths = (
        [shape(f"{part}.{level}.block.0.conv1.weight")[0] for level in range(num_levels)]
        for part in ("encoder.down", "decoder.up")
    )
    if not widths or any(width % base_channels for width in widths + decoder_widths):
        raise ValueError(
            f"The width of each resolution must be a multiple of the first layer's, {base_channels}, got {widths} in "
            f"the encoder and {decoder_widths} in the decoder."
        )
    multipliers, decoder_multipliers = (
        [width // base_channels for width in each] for each in (widths, decoder_widths)
    )
    num_codes, embed_dim = shape("quantize.codebook.weight")
    latent_channels = shape("quant_conv.weight")[1]
    out_channels = shape("decoder.conv_out.weight")[0] // source.patch_size**2
    if out_channels != num_channels:
        raise ValueError(
            f"The images that come out must have as many channels as those that go in, got {out_channels} and "
            f"{num_channels}. A VQModel cannot hold this model."
        )
    if num_channels not in (1, 3):
        source.notes.append(
            f"images have {num_channels} channels, such as maps of classes; no image processor makes these"
        )
    factor = 2 ** (num_levels - 1)
    if image_size is None:
        image_size = _image_size_of(source, factor)
    attention = [
        level for level in range(num_levels) if row.count(weights, f"encoder.down.{level}.attn.{{}}.q.weight")
    ]
    return {
        "image_size": image_size,
        "num_channels": num_channels,
        "base_channels": base_channels,
        "channel_multiplier": multipliers,
        "decoder_channel_multiplier": None if decoder_multipliers == multipliers else decoder_multipliers,
        "num_res_blocks": row.count(weights, "encoder.down.0.block.{}.conv1.weight"),
        "attn_resolutions": [image_size >> level for level in attention],
        "mid_block_add_attention": row.key("encoder.mid.attn_1.q.weight", num_levels) in weights,
        "latent_channels": latent_channels,
        "embed_dim": embed_dim,
        "num_codes": num_codes,
    }


def _image_size_of(source: Source, factor: int) -> int:
    config = source.config
    if "num_patches" in config:
        return int(config["num_patches"]) * factor
    if EXPORT_KEY in config:  # diffusers itself does not use `sample_size` and often leaves it at its default of 32
        return int(config["sample_size"])
    resolution = config.get("resolution")
    if isinstance(resolution, int) and resolution > 0 and resolution % factor == 0:
        return resolution
    source.assumptions.append(
        "the images are of 256 px, which `--image_size` changes; the weights work with any size, only the names of "
        "the resolutions depend on it"
    )
    return 256
