"""Converts generators of Halton-MaskGIT, whose transformers are nearly those of a `MaskGitModel`.

Its norms are scaled before the class modulates them, which is a part of the modulation here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hf_vq.convert.checkpoints import convert_checkpoint
from hf_vq.convert.layout import Weights
from hf_vq.convert.reading import read_json, read_weights, weights_file
from hf_vq.hub.loading import load_tokenizer
from hf_vq.modeling.configuration_maskgit import MaskGitConfig
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.modeling_maskgit import MaskGitModel
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.utils.text import shorten

PROJECT = "https://github.com/valeoai/Halton-MaskGIT"
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of its sizes tiny, base, large and xlarge


@dataclass
class GeneratorConversion:
    """A converted generator.

    Attributes:
        model: The model, with its tokenizer, in eval mode and float32.
        notes: What was left out, one sentence for each.
        assumptions: What the file does not say, and how to say it otherwise, one sentence for each.
    """

    model: MaskGitModel
    notes: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)


def convert_generator(
    path: str | Path, tokenizer: VQModel | str | Path, *, num_attention_heads: int | None = None
) -> GeneratorConversion:
    """Reads a class-conditional generator of Halton-MaskGIT.

    Args:
        path: The file, such as `ImageNet_384_large.pth`. Nothing that it holds is run.
        tokenizer: The tokenizer that made its tokens, or a folder or file of it, of ours or in one of `LAYOUTS`. Of
            the published generators it is LlamaGen's `vq_ds16_c2i.pt`.
        num_attention_heads: Number of heads. With None it is that of the project's size with this width.

    Returns:
        The converted model, with notes.

    Raises:
        FileNotFoundError: If there is nothing to read.
        ValueError: If the weights are others, or the tokenizer does not belong to them.
    """
    weights, notes = read_weights(weights_file(Path(path)))
    return convert_generator_state_dict(weights, tokenizer, num_attention_heads=num_attention_heads, notes=notes)


def convert_generator_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    tokenizer: VQModel | str | Path,
    *,
    num_attention_heads: int | None = None,
    notes: list[str] | None = None,
) -> GeneratorConversion:
    """As `convert_generator`, of weights that were read already; `notes` are put first."""
    weights = {
        key.replace("module.", "").replace("_orig_mod.", ""): value.float() for key, value in state_dict.items()
    }
    if not is_halton_maskgit(weights):
        raise ValueError(
            f"These are not weights of a generator of Halton-MaskGIT: it has names like 'tok_emb.weight', got "
            f"{shorten(sorted(weights), quoted=True)}."
        )
    if "in_proj.weight" in weights:
        raise ValueError(
            "A MaskGitModel cannot hold this generator of Halton-MaskGIT: it joins 2 x 2 tokens (`proj=2`)."
        )
    result = GeneratorConversion(None, list(notes or []))  # type: ignore[arg-type]  # it is set below
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    width, codes = shapes["tok_emb.weight"][1], shapes["tok_emb.weight"][0] - 1
    side = math.isqrt(shapes["pos_emb.weight"][0])
    if isinstance(tokenizer, str | Path):
        tokenizer = _open_tokenizer(Path(tokenizer), side, result)
    heads = num_attention_heads or _HEADS.get(width)
    if heads is None:
        raise ValueError(f"No size of the project has a width of {width}. Say the number of heads.")
    if num_attention_heads is None:
        result.assumptions.append(f"{heads} attention heads, as the project's size of width {width} has")
    vq_config = tokenizer.config
    grid = vq_config.image_size // vq_config.downsample_factor
    if (vq_config.num_codes, vq_config.num_groups, grid) != (codes, 1, side):
        raise ValueError(
            f"The generator is for {side} x {side} tokens of {codes:,} codes, but the tokenizer has {grid} x {grid} "
            f"tokens of {vq_config.num_codes:,} codes. Take the tokenizer that it was trained on, made with "
            f"`--image_size {side * vq_config.downsample_factor}`."
        )
    config = MaskGitConfig(
        vq_config=vq_config,
        num_classes=shapes["cls_emb.weight"][0] - 1,
        hidden_size=width,
        num_hidden_layers=sum(key.endswith(".attn.wq.weight") for key in weights),
        num_attention_heads=heads,
        intermediate_size=shapes["transformer.layers.0.ff.w1.weight"][0],
        norm_eps=1e-5,
        qk_norm="width",
        modulates_last_norm=True,
    )
    model = MaskGitModel(config, tokenizer=tokenizer)
    _load(model, _translate(weights, config.num_hidden_layers))
    result.model = model.eval()
    return result


def is_halton_maskgit(keys: Collection[str]) -> bool:
    """Whether the names are those of a generator of Halton-MaskGIT."""
    names = ("tok_emb.weight", "cls_emb.weight", "pos_emb.weight", "transformer.layers.0.attn.wq.weight")
    return all(any(key.endswith(name) for key in keys) for name in names)


def _open_tokenizer(path: Path, side: int, result: GeneratorConversion) -> VQModel:
    config = path / "config.json"
    if config.is_file() and read_json(config).get("model_type") == VQConfig.model_type:
        return load_tokenizer(str(path))[0]
    conversion = convert_checkpoint(path)
    size = side * conversion.model.config.downsample_factor
    conversion = convert_checkpoint(path, image_size=size)
    result.notes += [f"tokenizer: {note}" for note in conversion.notes]
    result.assumptions += [f"tokenizer: {each}" for each in conversion.assumptions]
    return conversion.model


def _translate(weights: Weights, num_layers: int) -> Weights:
    """Returns the weights under our names. What is left in `weights` is not known."""
    missing: list[str] = []

    def take(name: str, change: Callable[[torch.Tensor], torch.Tensor] = lambda value: value) -> torch.Tensor:
        if name not in weights:
            missing.append(name)
            return torch.empty(0)
        return change(weights.pop(name))

    tokens, head_bias = take("tok_emb.weight"), take("head.bias")
    weights.pop("head.weight", None)  # tied
    last = [take(f"last_norm.norm_final.{name}") for name in ("weight", "bias")]
    new = {
        "transformer.embed_tokens.weight": tokens[:-1],
        "transformer.mask_embedding": tokens[-1:],
        "head.weight": tokens[:-1],
        "head.bias": head_bias[:-1],
        "transformer.class_embedding.weight": take("cls_emb.weight"),
        "transformer.position_embedding": take("pos_emb.weight"),
        "transformer.register": take("reg_tokens.weight", lambda value: value.flatten()),
    }
    modulation = [take(f"last_norm.mlp.1.{name}") for name in ("weight", "bias")]
    for number in range(num_layers):
        theirs, ours = f"transformer.layers.{number}", f"transformer.layers.{number}"
        norms = [take(f"{theirs}.ln{each}.weight") for each in (1, 2)]
        parts = [take(f"{theirs}.mlp.1.{name}") for name in ("weight", "bias")]
        attention = [take(f"{theirs}.attn.w{each}.weight") for each in "qkvo"]
        feed_forward = [take(f"{theirs}.ff.w{each}.weight") for each in (1, 3, 2)]
        if missing:
            break
        weight, bias = (list(part.chunk(6)) for part in parts)
        for place, norm in zip((1, 4), norms, strict=True):
            weight[place], bias[place] = _absorb(norm, weight[place], bias[place])
        new |= {
            f"{ours}.modulation.weight": torch.cat(weight),
            f"{ours}.modulation.bias": torch.cat(bias),
            f"{ours}.attn.qkv.weight": torch.cat(attention[:3]),
            f"{ours}.attn.proj.weight": attention[3],
            f"{ours}.mlp.gate_up.weight": torch.cat(feed_forward[:2]),
            f"{ours}.mlp.down.weight": feed_forward[2],
        }
    problems = [f"missing: {shorten(missing, 20, quoted=True)}"] * bool(missing)
    problems += [f"not known: {shorten(sorted(weights), 20, quoted=True)}"] * bool(weights and not missing)
    if problems:
        raise ValueError("This checkpoint does not fit a generator of Halton-MaskGIT:\n" + "\n".join(problems))
    norm, offset = last
    (shift, scale), (shift_bias, scale_bias) = (part.chunk(2) for part in modulation)
    shift, shift_bias = shift + offset[:, None] * scale, shift_bias + offset * (1 + scale_bias)
    scale, scale_bias = _absorb(norm, scale, scale_bias)
    new["transformer.modulation.weight"] = torch.cat([shift, scale])
    new["transformer.modulation.bias"] = torch.cat([shift_bias, scale_bias])
    return new


def _absorb(norm: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns weight and bias of a scale s' with `1 + s' = norm (1 + s)`."""
    return norm[:, None] * weight, norm * (1 + bias) - 1


def _load(model: MaskGitModel, new: Weights) -> None:
    ours = {key: value for key, value in model.state_dict().items() if not key.startswith("tokenizer.")}
    problems = [
        f"{key!r} would have the shape {tuple(value.shape)}, expected {tuple(ours[key].shape)}"
        for key, value in new.items()
        if value.shape != ours[key].shape
    ]
    if problems:
        raise ValueError("A MaskGitModel cannot hold this generator of Halton-MaskGIT:\n" + "\n".join(problems))
    model.load_state_dict(new, strict=False)
