"""Converts weights of other projects to a `VQModel`, and back to diffusers.

`LAYOUTS` lists what can be converted. The converted model gives the tokens and pixels of the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_vq.convert.architecture import detect_layout, infer_architecture, select_weights
from hf_vq.convert.configs import read_config
from hf_vq.convert.layout import Source
from hf_vq.convert.layouts import EXPORT_KEY, LAYOUTS
from hf_vq.convert.reading import read_json, read_weights, weights_file
from hf_vq.modeling.checks_quantizer_vq import FIELDS
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.modeling.pixel_range_vq import SIGNED, UNIT
from hf_vq.modeling.quantizers_vq import QUANTIZERS
from hf_vq.utils.files import atomic_file, write_json
from hf_vq.utils.text import shorten

# A converted model has no way of training yet, so it gets plain vector quantization with the codes it came with.
_PLAIN: dict[str, Any] = {"sync_nu": 0.0, "alternating_steps": 0, "replace_freq": 0, "kmeans_init": False}
# What the processors of diffusers' pipelines make of images; the weights do not tell.
_PIPELINE_RANGES = {
    "Amused": UNIT,
    "AmusedImg2Img": UNIT,
    "AmusedInpaint": UNIT,
    "VQDiffusion": SIGNED,
    "LDM": SIGNED,
    "LDMSuperResolution": SIGNED,
}


@dataclass
class Conversion:
    """A converted tokenizer.

    Attributes:
        model: The model, in eval mode and float32.
        layout: The layout that the weights were in, one of `LAYOUTS`.
        notes: What was left out or decided, one sentence for each.
        assumptions: What neither the weights nor a configuration say, and how to say it otherwise, one sentence for
            each.
    """

    model: VQModel
    layout: str
    notes: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)


def convert_checkpoint(
    path: str | Path,
    *,
    layout: str | None = None,
    image_size: int | None = None,
    pixel_range: Sequence[float] | None = None,
    use_ema: bool = False,
    prefix: str | None = None,
) -> Conversion:
    """Reads a checkpoint of another project.

    Args:
        path: A `.safetensors` file, a `.ckpt`, `.pth`, `.pt` or `.bin` file, or a folder with one of these or with
            several and their index. Nothing that a file holds is run: of what is no tensor only the name is read. A
            `config.json` beside the weights, or the YAML file of taming-transformers and its descendants, is read,
            too.
        layout: One of `LAYOUTS`. With None the names of the weights decide.
        image_size: Side of the images. With None it is what the configuration says, or 256. The weights work with any.
        pixel_range: Range of the images that the weights were trained with, [-1, 1] or [0, 1]. With None it is what
            the configuration says (`save_for_diffusers` writes it there), what the project or the pipeline (its
            `model_index.json` beside the tokenizer's folder) is known for, or [-1, 1].
        use_ema: Whether to take the averaged weights of the training run, if the file has them.
        prefix: What the names of the tokenizer begin with, in a file that holds several.

    Returns:
        The converted model, its layout, and notes.

    Raises:
        FileNotFoundError: If there is nothing to read.
        ValueError: If the file cannot be read safely, or for one of the reasons of `convert_state_dict`.
    """
    file = weights_file(Path(path))
    source_config = read_config(file)
    if pixel_range is None and EXPORT_KEY not in source_config:
        pixel_range = _range_of_pipeline(file)
    weights, notes = read_weights(file)
    conversion = convert_state_dict(
        weights,
        layout=layout,
        image_size=image_size,
        pixel_range=pixel_range,
        source_config=source_config,
        use_ema=use_ema,
        prefix=prefix,
    )
    conversion.notes[:0] = notes
    return conversion


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    *,
    layout: str | None = None,
    image_size: int | None = None,
    pixel_range: Sequence[float] | None = None,
    source_config: Mapping[str, Any] | None = None,
    use_ema: bool = False,
    prefix: str | None = None,
) -> Conversion:
    """Builds a `VQModel` from the weights of another project.

    The architecture follows from names and shapes. In diffusers' layout these do not tell how many groups the group
    norms have. Without a `source_config` that number is 32.

    Args:
        state_dict: Mapping from names to tensors of any floating dtype. It may be a part of a larger model's weights.
        layout: One of `LAYOUTS`. With None the names of the weights decide.
        image_size: As for `convert_checkpoint`.
        pixel_range: As for `convert_checkpoint`.
        source_config: The model's configuration, as in its `config.json`.
        use_ema: As for `convert_checkpoint`.
        prefix: As for `convert_checkpoint`.

    Returns:
        The converted model, its layout, and notes.

    Raises:
        ValueError: If the layout is unknown, if a `VQModel` cannot hold the architecture or the quantizer, or if
            tensors are missing, left over, or of another shape. The message lists all of them.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(
            f"`layout` must be one of {shorten(LAYOUTS, quoted=True)}, or None to let the names of the weights "
            f"decide, got {layout!r}."
        )
    weights, notes = select_weights(state_dict, use_ema, prefix)
    source = Source({key: value.float() for key, value in weights.items()}, source_config or {}, notes)
    layout = layout or detect_layout(weights, source.config)
    LAYOUTS[layout].fold(source)
    fields = infer_architecture(source, layout, image_size)
    fields |= LAYOUTS[layout].fields(source)
    if pixel_range is None:
        pixel_range = _range_of(source, layout)
    used = FIELDS[fields.get("quantizer_type", "vector")].values()
    plain = {name: value for name, value in _PLAIN.items() if name in used}
    model = VQModel(VQConfig(**fields, **plain, pixel_range=list(pixel_range)))
    _load(model, source.weights, layout)
    return Conversion(model.eval(), layout, source.notes, source.assumptions)


def _range_of(source: Source, layout: str) -> Sequence[float]:
    """Returns the range of the pixels that the configuration or the layout tells."""
    if EXPORT_KEY in source.config:
        return SIGNED if source.config[EXPORT_KEY].get("do_normalize", True) else UNIT
    known = LAYOUTS[layout].pixel_range
    if known is None:
        source.assumptions.append(
            "the network takes pixels in [-1, 1]; `--no_normalize` is for [0, 1], which aMUSEd's takes, for example"
        )
    return known or SIGNED


def _range_of_pipeline(file: Path) -> Sequence[float] | None:
    """Returns the range of the pixels of the diffusers pipeline that a tokenizer's folder belongs to, if it tells."""
    index = file.resolve().parent.with_name("model_index.json")
    pipeline = read_json(index) if index.is_file() else {}
    if file.resolve().parent.name not in pipeline:
        return None
    return _PIPELINE_RANGES.get(str(pipeline.get("_class_name")).removesuffix("Pipeline"))


def _load(model: VQModel, weights: Mapping[str, torch.Tensor], layout: str) -> None:
    num_levels = len(model.config.channel_multiplier)
    names = {key: LAYOUTS[layout].key(key, num_levels) for key, _ in model.named_parameters()}
    problems = []
    missing = sorted(set(names.values()) - set(weights))
    unexpected = sorted(set(weights) - set(names.values()))
    if missing:
        problems.append(f"missing: {shorten(missing, 40, quoted=True)}")
    if unexpected:
        problems.append(f"not known: {shorten(unexpected, 40, quoted=True)}")
    new = {}
    for key, parameter in model.named_parameters():
        value = weights.get(names[key], parameter)
        if ".attn" in key and value.ndim == 2:  # a linear layer is a convolution of one pixel
            value = value[:, :, None, None]
        if value.shape != parameter.shape:
            problems.append(f"{names[key]!r} has the shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
        new[key] = value
    if problems:
        raise ValueError(
            f"This checkpoint does not fit the layout {layout!r}. Choose another layout, or fix these differences:\n"
            + "\n".join(problems)
        )
    model.load_state_dict(new, strict=False)


def save_for_diffusers(model: VQModel, folder: str | Path) -> None:
    """Writes a folder that `diffusers.VQModel.from_pretrained` loads, with the same tokens and pixels.

    In diffusers, `vq.quantize(vq.encode(pixels).latents)[2][2]` gives the tokens of `pixels`, flat, and
    `vq.decode(tokens, force_not_quantize=True, shape=(batch, h, w, embed_dim)).sample` gives the pixels of tokens. The
    codes are the effective ones, with affine map and normalization applied. What belongs to training is lost.
    `convert_checkpoint` reads the image size and the pixel range back.

    Args:
        model: The tokenizer.
        folder: The folder. It is created if needed. Its files `config.json` and `diffusion_pytorch_model.safetensors`
            are replaced.

    Raises:
        ValueError: If the model has parts that diffusers' `VQModel` lacks. The message names all of them.
    """
    config = model.config
    layout, num_levels = "diffusers", len(config.channel_multiplier)
    widths = [config.base_channels * multiplier for multiplier in config.channel_multiplier]
    problems = _what_diffusers_lacks(config, widths)
    if problems:
        raise ValueError("diffusers' `VQModel` cannot hold this tokenizer: " + "; ".join(problems) + ".")
    weights = {
        LAYOUTS[layout].key(key, num_levels): parameter.detach()
        for key, parameter in model.named_parameters()
        if not key.startswith("quantize.")
    }
    weights = {key: value.flatten(1) if ".to_" in key and value.ndim == 4 else value for key, value in weights.items()}
    weights["quantize.embedding.weight"] = model.quantize.get_codebook()
    attention = [config.image_size >> level in (config.attn_resolutions or []) for level in range(num_levels)]
    source = {
        "_class_name": "VQModel",
        "in_channels": config.num_channels,
        "out_channels": config.num_channels,
        "down_block_types": ["AttnDownEncoderBlock2D" if each else "DownEncoderBlock2D" for each in attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if each else "UpDecoderBlock2D" for each in reversed(attention)],
        "block_out_channels": widths,
        "layers_per_block": config.num_res_blocks,
        "act_fn": "silu",
        "latent_channels": config.latent_channels,
        "sample_size": config.image_size,
        "num_vq_embeddings": config.num_codes,
        "norm_num_groups": math.gcd(config.norm_num_groups, widths[0]),
        "vq_embed_dim": config.embed_dim,
        "norm_type": "group",
        "mid_block_add_attention": config.mid_block_add_attention,
        "lookup_from_codebook": True,
        EXPORT_KEY: {"do_normalize": tuple(config.pixel_range) == SIGNED},
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "diffusion_pytorch_model.safetensors") as temporary:
        weights = {key: value.float().cpu().contiguous() for key, value in weights.items()}
        save_file(weights, temporary, metadata={"format": "pt"})
    write_json(source, folder / "config.json")


def _what_diffusers_lacks(config: VQConfig, widths: list[int]) -> list[str]:
    if config.architecture != "vqgan":
        return [f"its architecture is {config.architecture!r}, not 'vqgan'"]
    problems = []
    if not QUANTIZERS[config.quantizer_type].takes_nearest:
        problems.append(f"its quantizer {config.quantizer_type!r} does not take the nearest of a list of codes")
    if config.num_groups > 1:
        problems.append(f"it has {config.num_groups} codes per position, not one")
    if config.num_attention_heads > 1 and (config.mid_block_add_attention or config.attn_resolutions):
        problems.append(f"its attention has {config.num_attention_heads} heads, not one")
    if config.decoder_channel_multiplier not in (None, config.channel_multiplier):
        problems.append("its decoder has other widths than its encoder (`decoder_channel_multiplier`)")
    if config.patch_size > 1 or config.num_resizes < len(widths) - 1:
        problems.append("it reads wavelets of patches (`patch_size`) or has fewer steps down (`num_downsamples`)")
    if config.channel_multiplier[0] > 1:
        problems.append("its first resolution is wider than its first layer (`channel_multiplier[0]` above 1)")
    groups = {math.gcd(config.norm_num_groups, width) for width in widths}
    if len(groups) > 1:
        problems.append(f"its group norms have {sorted(groups)} groups, not one number throughout")
    # Among codes of unit norm only the direction of a vector decides, so its norm need not be removed.
    if config.norm not in (None, "none") and not (config.norm == config.cb_norm == "l2"):
        problems.append(f"it normalizes vectors (`norm={config.norm!r}`) before it compares them with the codes")
    return problems
