# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of the vector-quantized image tokenizer."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .version_vq import VERSION_KEY, __version__, check_version

RECOMMENDED_QUANTIZER: dict[str, Any] = {
    "beta": 0.98,
    "sync_nu": 0.2,
    "affine_lr": 0.0,
    "affine_groups": 1,
    "affine_mode": "learned",
    "replace_freq": 20,
    "replace_policy": "input",
    "kmeans_init": True,
    "norm": None,
    "cb_norm": None,
    "alternating_steps": 1,
    "alternating_kind": "centroid",
    "alternating_lr": None,
    "codebook_update": "gradient",
    "gradient_estimator": "ste",
}
"""Keyword arguments of `VectorQuant` for the full method; the defaults of [`VQConfig`]'s fields of the same names."""


@strict
class VQConfig(PreTrainedConfig):
    r"""Configuration of a [`VQModel`]: the autoencoder, its quantizer and its loss.

    `VQConfig()` is a 256 px tokenizer with 16 x 16 tokens in the shape that VQGAN made usual, with the quantizer
    settings of `RECOMMENDED_QUANTIZER`. `VQConfig(architecture="sqvae", image_size=32, base_channels=64)` is the small
    network of the SQ-VAE experiments, with 8 x 8 tokens.

    Args:
        architecture (`"vqgan"` or `"sqvae"`, defaults to `"vqgan"`):
            `"vqgan"`: residual blocks with group norm and SiLU, optional attention. `"sqvae"`: two strided
            convolutions with batch norm, then residual blocks; the decoder ends in a sigmoid.
        image_size (`int`, defaults to 256):
            Side of the images that the model is made for; a multiple of `downsample_factor`. The model takes any
            image whose sides the factor divides; this is the size to which `attn_resolutions` refer.
        num_channels (`int`, defaults to 3): Channels of the images, at least 1.
        base_channels (`int`, defaults to 128):
            Width of the network. `"vqgan"` multiplies it by `channel_multiplier`; `"sqvae"` uses it throughout
            (half of it after the first convolution, so there it must be even).
        channel_multiplier (`list[int]`, defaults to `[1, 1, 2, 2, 4]`):
            `"vqgan"` only. Width of each resolution in units of `base_channels`, each at least 1. Every entry after
            the first halves the image's sides.
        num_res_blocks (`int`, defaults to 2):
            Residual blocks: of each resolution in a `"vqgan"` encoder (its decoder has one more), of the whole
            encoder and of the whole decoder in `"sqvae"`. At least 1.
        attn_resolutions (`list[int]`, *optional*):
            `"vqgan"` only. Resolutions (sides of the feature map at `image_size`) with attention after each residual
            block; `[]` for none. The default is the lowest resolution.
        mid_block_add_attention (`bool`, defaults to `True`):
            `"vqgan"` only. Whether the middle of the encoder and of the decoder has an attention block.
        num_attention_heads (`int`, defaults to 1): `"vqgan"` only. Divides the width of each attention block.
        latent_channels (`int`, defaults to 256):
            `"vqgan"` only. Channels between the encoder and `quant_conv`; in `"sqvae"` they are the `base_channels`.
        embed_dim (`int`, defaults to 8):
            Dimension of the codes. 1 x 1 convolutions go from the latent channels to it and back; a `"sqvae"` with
            `embed_dim` equal to `base_channels` has none.
        norm_num_groups (`int`, defaults to 32):
            `"vqgan"` only. Groups of each group norm; where a width has no such number of groups, their greatest
            common divisor. At least 1.
        dropout (`float`, defaults to 0.0): `"vqgan"` only. Dropout in the residual blocks, in [0, 1).
        quantizer_type (`"vector"`, `"group"` or `"residual"`, defaults to `"vector"`):
            One code per position, one code for each of `num_groups` slices of the channels, or `num_groups` codes
            that sum up.
        num_codes (`int`, defaults to 1024): Codes in total, over all groups. At least 1.
        num_groups (`int`, defaults to 1):
            Slices of a `"group"` quantizer (must divide `embed_dim`) or levels of a `"residual"` one.
        share_codebook (`bool`, defaults to `True`):
            Whether all groups or levels use one codebook. If not, `num_codes` is split evenly among them.
        beta (`float`):
            Weight of the codebook's term of the commitment loss, in [0, 1]; the encoder's term gets `1 - beta`.
        sync_nu (`float`): Weight of the task gradient that codes receive (synchronized commitment), at least 0.
        affine_lr (`float`): Scale of the learned affine map of the codes, at least 0; 0 turns it off.
        affine_groups (`int`): Blocks of codes with an affine map of their own; must divide the codes of a codebook.
        affine_mode (`"learned"` or `"running"`): Whether the affine map is learned or follows running statistics.
        replace_freq (`int`): Training batches without use after which a code is replaced; 0 never replaces.
        replace_policy (`"input"`, `"kmeans"` or `"busy"`): What a replaced code becomes.
        kmeans_init (`bool`): Whether the first training batch initialises the codes by k-means++.
        norm (`"l2"`, `"clip"`, `"bn"`, `"gn"`, `"in"`, `"none"`, *optional*): Normalisation of the vectors.
        cb_norm (`"l2"`, `"clip"`, `"none"`, *optional*): Normalisation of the codes.
        alternating_steps (`int`): Inner steps on the commitment loss, for the codes alone, per batch; at least 0.
        alternating_kind (`"sgd"` or `"centroid"`): Kind of the inner step.
        alternating_lr (`float`, *optional*): Size of the inner step, above 0; the default belongs to the kind.
        codebook_update (`"gradient"` or `"ema"`): What moves the codes between inner steps.
        codebook_decay (`float`, defaults to 0.99): Decay of the moving averages of `"ema"`, in [0, 1).
        gradient_estimator (`"ste"` or `"rotation"`): How the gradient passes the quantizer.
        commitment_weight (`float`, defaults to 1.0):
            Weight of the commitment loss in the model's loss, at least 0 (alpha in the paper).
        reconstruction_loss (`"l1"` or `"l2"`, defaults to `"l2"`):
            Mean absolute or mean squared error of the model's loss, measured on pixels in [0, 1].

    The quantizer's fields (`beta` to `gradient_estimator`) are arguments of `VectorQuant` and default to
    `RECOMMENDED_QUANTIZER`.
    """

    model_type = "hf_vq"

    architecture: Literal["vqgan", "sqvae"] = "vqgan"
    image_size: int = 256
    num_channels: int = 3
    base_channels: int = 128
    channel_multiplier: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: list[int] | tuple[int, ...] | None = None
    mid_block_add_attention: bool = True
    num_attention_heads: int = 1
    latent_channels: int = 256
    embed_dim: int = 8
    norm_num_groups: int = 32
    dropout: float | int = 0.0

    quantizer_type: Literal["vector", "group", "residual"] = "vector"
    num_codes: int = 1024
    num_groups: int = 1
    share_codebook: bool = True
    beta: float | int = RECOMMENDED_QUANTIZER["beta"]
    sync_nu: float | int = RECOMMENDED_QUANTIZER["sync_nu"]
    affine_lr: float | int = RECOMMENDED_QUANTIZER["affine_lr"]
    affine_groups: int = RECOMMENDED_QUANTIZER["affine_groups"]
    affine_mode: Literal["learned", "running"] = RECOMMENDED_QUANTIZER["affine_mode"]
    replace_freq: int = RECOMMENDED_QUANTIZER["replace_freq"]
    replace_policy: Literal["input", "kmeans", "busy"] = RECOMMENDED_QUANTIZER["replace_policy"]
    kmeans_init: bool = RECOMMENDED_QUANTIZER["kmeans_init"]
    norm: Literal["none", "l2", "clip", "bn", "gn", "in"] | None = RECOMMENDED_QUANTIZER["norm"]
    cb_norm: Literal["none", "l2", "clip"] | None = RECOMMENDED_QUANTIZER["cb_norm"]
    alternating_steps: int = RECOMMENDED_QUANTIZER["alternating_steps"]
    alternating_kind: Literal["sgd", "centroid"] = RECOMMENDED_QUANTIZER["alternating_kind"]
    alternating_lr: float | int | None = RECOMMENDED_QUANTIZER["alternating_lr"]
    codebook_update: Literal["gradient", "ema"] = RECOMMENDED_QUANTIZER["codebook_update"]
    codebook_decay: float | int = 0.99
    gradient_estimator: Literal["ste", "rotation"] = RECOMMENDED_QUANTIZER["gradient_estimator"]

    commitment_weight: float | int = 1.0
    reconstruction_loss: Literal["l1", "l2"] = "l2"

    def __post_init__(self, **kwargs: Any) -> None:
        check_version(kwargs.pop(VERSION_KEY, None))
        self.channel_multiplier = list(self.channel_multiplier)
        if self.attn_resolutions is None:
            self.attn_resolutions = [self.image_size // self.downsample_factor]
        self.attn_resolutions = list(self.attn_resolutions)
        if not type(self).__module__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
            # Written for `trust_remote_code`. Read here, it would hide the registered pipeline and ask for the flag.
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the version of this code."""
        return super().to_dict() | {VERSION_KEY: __version__}

    @property
    def downsample_factor(self) -> int:
        """`int`: pixels per token along each side of an image."""
        return 4 if self.architecture == "sqvae" else 2 ** max(len(self.channel_multiplier) - 1, 0)

    def quantizer_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for the quantizer layer that `quantizer_type` names.

        Returns:
            `dict`: arguments of `VectorQuant`, or of `GroupVectorQuant` and `ResidualVectorQuant` for these types.
        """
        kwargs: dict[str, Any] = {"feature_size": self.embed_dim, "num_codes": self.num_codes, "dim": 1}
        kwargs["codebook_decay"] = self.codebook_decay
        kwargs |= {name: getattr(self, name) for name in RECOMMENDED_QUANTIZER}
        if self.quantizer_type != "vector":
            kwargs |= {"groups": self.num_groups, "share": self.share_codebook}
        return kwargs

    def validate_architecture(self) -> None:
        """Checks the autoencoder's fields against each other; run when a config is made and when it is saved."""
        super().validate_architecture()
        for name in ("num_channels", "base_channels", "num_res_blocks", "num_attention_heads"):
            self._require_at_least(name, 1)
        for name in ("latent_channels", "embed_dim", "norm_num_groups"):
            self._require_at_least(name, 1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}.")
        if not self.channel_multiplier or min(self.channel_multiplier) < 1:
            raise ValueError(
                "`channel_multiplier` needs one entry of at least 1 for each resolution, such as [1, 2, 4], "
                f"got {self.channel_multiplier}."
            )
        if self.image_size < 1 or self.image_size % self.downsample_factor:
            raise ValueError(
                f"`image_size` must be a positive multiple of the downsample factor {self.downsample_factor}, "
                f'got {self.image_size}. The factor is 4 for "sqvae"; for "vqgan" each entry of `channel_multiplier` '
                "after the first doubles it."
            )
        if self.architecture == "vqgan":
            self._validate_vqgan()
        elif self.base_channels % 2:
            raise ValueError(f'`base_channels` must be even for "sqvae", got {self.base_channels}.')

    def validate_quantizer(self) -> None:
        """Checks the quantizer's fields against each other; run when a config is made and when it is saved."""
        for name, minimum in (("num_codes", 1), ("num_groups", 1), ("affine_groups", 1)):
            self._require_at_least(name, minimum)
        for name in ("sync_nu", "affine_lr", "replace_freq", "alternating_steps", "commitment_weight"):
            self._require_at_least(name, 0)
        if not 0 <= self.beta <= 1:
            raise ValueError(
                f"`beta` must be in [0, 1], got {self.beta}. It weights the codebook's term of the commitment loss: "
                "1 moves only the codes, 0 only the encoder."
            )
        if not 0 <= self.codebook_decay < 1:
            raise ValueError(f"`codebook_decay` must be in [0, 1), got {self.codebook_decay}.")
        if self.codebook_update == "ema" and (self.sync_nu > 0 or self.alternating_steps > 0):
            raise ValueError(
                f'`codebook_update="ema"` needs `sync_nu=0` and `alternating_steps=0`, got {self.sync_nu} and '
                f"{self.alternating_steps}: an EMA codebook receives no gradient and already moves to its vectors."
            )
        if self.affine_mode == "running" and self.affine_groups != 1:
            raise ValueError(
                f'`affine_mode="running"` needs `affine_groups=1`, got {self.affine_groups}: running moments are '
                "those of a whole codebook."
            )
        if self.quantizer_type == "residual" and self.num_groups > 1:
            if self.affine_mode == "running" and self.share_codebook:
                raise ValueError(
                    '`affine_mode="running"` needs `share_codebook=False` in a residual quantizer: each level has '
                    "moments of its own."
                )
            if self.num_codes < self.num_groups:
                raise ValueError(
                    f"`num_codes` must be at least the number of levels, got {self.num_codes} codes and "
                    f"{self.num_groups} levels."
                )
        if self.alternating_lr is not None and not self.alternating_lr > 0:
            raise ValueError(
                f"`alternating_lr` must be above 0, or None for the default of `alternating_kind`, "
                f"got {self.alternating_lr}. `alternating_steps=0` turns the inner steps off."
            )
        if self.quantizer_type == "vector" and self.num_groups != 1:
            raise ValueError(
                f'`num_groups={self.num_groups}` needs `quantizer_type` "group" or "residual", got "vector".'
            )
        if self.quantizer_type == "group" and self.embed_dim % self.num_groups:
            raise ValueError(
                f"`num_groups` must divide `embed_dim` for a group quantizer, got {self.num_groups} groups and "
                f"{self.embed_dim} dimensions."
            )
        codebook_size = self.num_codes
        if not self.share_codebook:
            if self.num_codes % self.num_groups:
                raise ValueError(
                    f"`num_groups` must divide `num_codes`, which separate codebooks split among them, got "
                    f"{self.num_groups} groups and {self.num_codes} codes. `share_codebook=True` needs no split."
                )
            codebook_size //= self.num_groups
        if codebook_size % self.affine_groups:
            raise ValueError(
                f"`affine_groups` must divide the number of codes of a codebook, got {self.affine_groups} affine "
                f"groups and {codebook_size} codes."
            )

    def _require_at_least(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if not value >= minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")

    def _validate_vqgan(self) -> None:
        resolutions = [self.image_size >> level for level in range(len(self.channel_multiplier))]
        attn_resolutions = self.attn_resolutions or []
        unknown = sorted(set(attn_resolutions) - set(resolutions))
        if unknown:
            raise ValueError(
                f"`attn_resolutions` names {unknown}, but at `image_size={self.image_size}` the network has the "
                f"resolutions {resolutions}. Choose among these, or leave it at None for the lowest one."
            )
        widths = {
            multiplier * self.base_channels
            for multiplier, resolution in zip(self.channel_multiplier, resolutions, strict=True)
            if resolution in attn_resolutions
        }
        if self.mid_block_add_attention:
            widths.add(self.channel_multiplier[-1] * self.base_channels)
        for width in sorted(widths):
            if width % self.num_attention_heads:
                raise ValueError(
                    f"`num_attention_heads={self.num_attention_heads}` must divide the width of every attention "
                    f"block, but one has {width} channels."
                )


VQConfig.register_for_auto_class()

__all__ = ["RECOMMENDED_QUANTIZER", "VQConfig"]
