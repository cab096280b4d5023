"""Converts weights of other projects to a `VQModel`, and back to diffusers.

The layouts are diffusers' `VQModel` (aMUSEd, VQ-Diffusion, latent diffusion), taming-transformers' VQGAN, LlamaGen's
tokenizer (also used by DeepSeek's Janus) and transformers' `JanusVQVAE`. The converted model gives the tokens and
pixels of the original.
"""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hf_vq.convert.layouts import (
    EXPORT_KEY,
    LAYOUTS,
    averaged_key,
    detect_layout,
    foreign_key,
    infer_architecture,
    select_weights,
)
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.modeling.pixel_range_vq import SIGNED, UNIT
from hf_vq.modeling.quantizers_vq import QUANTIZERS
from hf_vq.utils.files import atomic_file, write_json
from hf_vq.utils.text import shorten

# A converted model has no way of training yet, so it gets plain vector quantization with the codes it came with.
_PLAIN: dict[str, Any] = {"sync_nu": 0.0, "alternating_steps": 0, "replace_freq": 0, "kmeans_init": False}
_PICKLES = (".ckpt", ".pth", ".pt", ".bin")
_WRAPPERS = ("state_dict", "model")
_MOST_CLAIMED = 4  # times the size of a file: weights that are tied share their place in it


@dataclass
class Conversion:
    """A converted tokenizer.

    Attributes:
        model: The model, in eval mode and float32.
        layout: The layout that the weights were in, one of `LAYOUTS`.
        notes: What was left out or decided, one sentence for each.
    """

    model: VQModel
    layout: str
    notes: list[str] = field(default_factory=list)


def convert_checkpoint(
    path: str | Path,
    *,
    layout: str | None = None,
    image_size: int | None = None,
    pixel_range: Sequence[float] | None = None,
    use_ema: bool = False,
) -> Conversion:
    """Reads a checkpoint of another project.

    Args:
        path: A `.safetensors` file, a `.ckpt`, `.pth`, `.pt` or `.bin` file (read by
            `torch.load(weights_only=True)`), or a folder with one of these. A `config.json` beside the weights is
            read, too.
        layout: One of `LAYOUTS`. With None the names of the weights decide.
        image_size: Side of the images. With None it is what the configuration says, or 256. The weights work with any.
        pixel_range: Range of the images that the weights were trained with, [-1, 1] or [0, 1]. With None it is what
            the configuration says (`save_for_diffusers` writes it there), or [-1, 1].
        use_ema: Whether to take the averaged weights of the training run, if the file has them.

    Returns:
        The converted model, its layout, and notes.

    Raises:
        FileNotFoundError: If there is nothing to read.
        ValueError: If the file cannot be read safely, or for one of the reasons of `convert_state_dict`.
    """
    file = _weights_file(Path(path))
    config_file = file.with_name("config.json")
    source_config = _read_json(config_file) if config_file.is_file() else {}
    source_config = source_config.get("vq_config", source_config)  # in the configuration of the whole Janus
    if not isinstance(source_config, dict):
        raise ValueError(f"The 'vq_config' of {config_file.name!r} must be a dictionary, got {source_config!r}.")
    return convert_state_dict(
        _read(file),
        layout=layout,
        image_size=image_size,
        pixel_range=pixel_range,
        source_config=source_config,
        use_ema=use_ema,
    )


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    *,
    layout: str | None = None,
    image_size: int | None = None,
    pixel_range: Sequence[float] | None = None,
    source_config: Mapping[str, Any] | None = None,
    use_ema: bool = False,
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
    source_config = source_config or {}
    weights, notes = select_weights(state_dict, use_ema)
    weights = {key: value.float() for key, value in weights.items()}
    layout = layout or detect_layout(weights)
    fields = infer_architecture(weights, layout, image_size, source_config)
    fields |= LAYOUTS[layout].fields(weights, notes)
    if pixel_range is None:
        pixel_range = SIGNED if source_config.get(EXPORT_KEY, {}).get("do_normalize", True) else UNIT
    model = VQModel(VQConfig(**fields, **_PLAIN, pixel_range=list(pixel_range)))
    _load(model, weights, layout)
    return Conversion(model.eval(), layout, notes)


def _load(model: VQModel, weights: Mapping[str, torch.Tensor], layout: str) -> None:
    num_levels = len(model.config.channel_multiplier)
    names = {key: foreign_key(key, layout, num_levels) for key, _ in model.named_parameters()}
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


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"There is no file or folder {str(path)!r}. Check the path.")
    for pattern in ("diffusion_pytorch_model.safetensors", "model.safetensors", "*.safetensors.index.json"):
        for file in path.glob(pattern):
            return file
    files = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", *_PICKLES))
    if len(files) != 1:
        names = shorten([file.name for file in files], quoted=True)
        found = f"{len(files)} of them, {names}" if files else "none"
        folders = sorted(each.name for each in path.iterdir() if each.is_dir())
        inside = shorten(folders, quoted=True)
        hint = f" Its folders are {inside}. One of them may hold the tokenizer." if folders else ""
        raise FileNotFoundError(f"{str(path)!r} must hold one file of weights, but found {found}.{hint}")
    return files[0]


def _read(file: Path) -> Mapping[str, torch.Tensor]:
    if file.suffix not in (".safetensors", ".json", *_PICKLES):
        kinds = shorten((".safetensors", *_PICKLES), quoted=True)
        raise ValueError(f"A checkpoint must be a file of {kinds}, got {file.name!r}.")
    try:
        if file.suffix == ".json":
            weight_map = _read_json(file).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
                raise ValueError("it has no 'weight_map' from names of weights to names of files")
            shards = sorted(set(weight_map.values()))
            return {key: value for shard in shards for key, value in load_file(file.with_name(shard)).items()}
        if file.suffix == ".safetensors":
            return load_file(file)
        _refuse_compressed(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file.name!r} holds more than tensors, and reading anything else can run code. If you trust the file, "
            "write its weights to a file of their own: "
            "`torch.save(torch.load(file, weights_only=False)['state_dict'], new_file)`."
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"{file.name!r} cannot be read: {error}. It may be incomplete; try to download it again."
        ) from error
    averaged: dict[str, torch.Tensor] = {}
    opened: set[int] = set()
    while isinstance(content, Mapping) and (key := next((key for key in _WRAPPERS if key in content), None)):
        if id(content) in opened:
            raise ValueError(f"{file.name!r} has a {key!r} that contains itself. It holds no weights.")
        opened.add(id(content))
        ema = content.get("ema")
        if isinstance(ema, Mapping):  # in some files it is the rate of decay
            averaged |= {averaged_key(name): value for name, value in ema.items()}
        content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{file.name!r} holds a {type(content).__name__}, but a checkpoint must be a dictionary of tensors."
        )
    weights = {
        key: value
        for key, value in (dict(content) | averaged).items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    _refuse_claims(weights, file)
    return weights


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, not a dictionary")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file.name!r} cannot be read: {error}.") from error
    return content


def _refuse_compressed(file: Path) -> None:
    """Refuses an archive whose members are far larger than itself; `torch.save` compresses nothing."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MOST_CLAIMED * file.stat().st_size:
            raise ValueError(f"its {file.stat().st_size:,} bytes claim to hold {size:,}")


def _refuse_claims(weights: Mapping[str, torch.Tensor], file: Path) -> None:
    """Refuses tensors that have more values than the file has: a stride of 0 repeats one of them at will."""
    claimed, most = 0, _MOST_CLAIMED * file.stat().st_size
    for key, value in weights.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            raise ValueError(f"{key!r} in {file.name!r} is not an ordinary tensor of numbers. Save it as one.")
        size = value.numel() * value.element_size()
        claimed += size
        if size > value.untyped_storage().nbytes() or claimed > most:
            raise ValueError(
                f"{key!r} in {file.name!r} has the shape {tuple(value.shape)}, which is more than the file of "
                f"{file.stat().st_size:,} bytes holds. If it repeats values on purpose, save `tensor.contiguous()`."
            )


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
        foreign_key(key, layout, num_levels): parameter.detach()
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
    if config.channel_multiplier[0] > 1:
        problems.append("its first resolution is wider than its first layer (`channel_multiplier[0]` above 1)")
    groups = {math.gcd(config.norm_num_groups, width) for width in widths}
    if len(groups) > 1:
        problems.append(f"its group norms have {sorted(groups)} groups, not one number throughout")
    # Among codes of unit norm only the direction of a vector decides, so its norm need not be removed.
    if config.norm not in (None, "none") and not (config.norm == config.cb_norm == "l2"):
        problems.append(f"it normalizes vectors (`norm={config.norm!r}`) before it compares them with the codes")
    return problems
