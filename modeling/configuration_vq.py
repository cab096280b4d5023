# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of the vector-quantized image tokenizer."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_quantizer_vq import QuantizerConfig
from .limits_vq import require_weight
from .pixel_range_vq import SIGNED, check_pixel_range


@strict
class VQConfig(QuantizerConfig):
    r"""Configuration of a [`VQModel`]: the autoencoder, its quantizer and its loss.

    `VQConfig()` is a 256 px tokenizer with 16 x 16 tokens in the shape that VQGAN made usual, with the quantizer
    settings of `RECOMMENDED_QUANTIZER`. `VQConfig(architecture="sqvae", image_size=32, base_channels=64)` is the small
    network of the SQ-VAE experiments, with 8 x 8 tokens.

    Args:
        architecture: `"vqgan"`, `"magvit2"` or `"sqvae"`. `"vqgan"`: residual blocks with group norm and SiLU,
            optional attention. `"magvit2"`: the network of Open-MAGVIT2, whose decoder reads the codes at each
            resolution, too.
            `"sqvae"`: two strided convolutions with batch norm, then residual blocks; the decoder ends in a sigmoid
            over `pixel_range`.
        image_size: Side of the images that the model is made for; a multiple of `downsample_factor`. The model takes
            any image whose sides the factor divides; this is the size to which `attn_resolutions` refer.
        num_channels: Channels of the images, at least 1.
        pixel_range: The values of black and of white in the pixels that the model takes and gives: `[-1.0, 1.0]` or
            `[0.0, 1.0]`.
        base_channels: Width of the network. `"vqgan"` multiplies it by `channel_multiplier`; `"sqvae"` uses it
            throughout (half of it after the first convolution, so there it must be even).
        channel_multiplier: Not in `"sqvae"`. Width of each resolution in units of `base_channels`, each at least 1.
            Every entry after the first halves the image's sides, unless `num_downsamples` says otherwise.
        decoder_channel_multiplier: `"vqgan"` only. The same for the decoder, if its widths are others than the
            encoder's. It has as many entries.
        num_downsamples: `"vqgan"` only. How often the encoder halves the sides, if not after every entry of
            `channel_multiplier` but the last: after so many first ones. The decoder doubles them after the first ones
            that it runs, its last entries.
        patch_size: `"vqgan"` only. Side of patches, a power of two, whose Haar wavelets the network reads and writes
            in place of pixels. 1 is pixels.
        num_res_blocks: Residual blocks: of each resolution in a `"vqgan"` encoder (its decoder has one more), of the
            whole encoder and of the whole decoder in `"sqvae"`. At least 1.
        attn_resolutions: `"vqgan"` only. Resolutions (sides of the feature map at `image_size`) with attention after
            each residual block; `[]` for none. The default is the lowest resolution.
        mid_block_add_attention: `"vqgan"` only. Whether the middle of the encoder and of the decoder has an attention
            block.
        num_attention_heads: `"vqgan"` only. Divides the width of each attention block.
        latent_channels: Not in `"sqvae"`. Channels between the encoder and `quant_conv`; in `"sqvae"` they are the
            `base_channels`.
        embed_dim: Dimension of the codes. 1 x 1 convolutions go from the latent channels to it and back; a `"sqvae"`
            with `embed_dim` equal to `base_channels` has none.
        norm_num_groups: Not in `"sqvae"`. Groups of each group norm; where a width has no such number of groups, their
            greatest common divisor. At least 1.
        dropout: Not in `"sqvae"`. Dropout in the residual blocks, in [0, 1).
        reconstruction_loss: `"l1"` or `"l2"`. Mean absolute or mean squared error of the model's loss, measured on
            pixels in [0, 1] whatever their range.

    The fields of the quantizer and `commitment_weight` are those of [`QuantizerConfig`].
    """

    model_type = "hf_vq"

    architecture: Literal["vqgan", "magvit2", "sqvae"] = "vqgan"
    image_size: int = 256
    num_channels: int = 3
    pixel_range: list[float | int] | tuple[float | int, ...] = SIGNED
    base_channels: int = 128
    channel_multiplier: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_channel_multiplier: list[int] | tuple[int, ...] | None = None
    num_downsamples: int | None = None
    patch_size: int = 1
    num_res_blocks: int = 2
    attn_resolutions: list[int] | tuple[int, ...] | None = None
    mid_block_add_attention: bool = True
    num_attention_heads: int = 1
    latent_channels: int = 256
    embed_dim: int = 8
    norm_num_groups: int = 32
    dropout: float | int = 0.0

    reconstruction_loss: Literal["l1", "l2"] = "l2"

    def __post_init__(self, **kwargs: Any) -> None:
        self.channel_multiplier = list(self.channel_multiplier)
        if self.decoder_channel_multiplier is not None:
            self.decoder_channel_multiplier = list(self.decoder_channel_multiplier)
        self.pixel_range = [float(end) for end in self.pixel_range]
        if self.attn_resolutions is None:
            self.attn_resolutions = [self.image_size // self.downsample_factor]
        self.attn_resolutions = list(self.attn_resolutions)
        self.count_codes(self.embed_dim)
        super().__post_init__(**kwargs)

    @property
    def downsample_factor(self) -> int:
        """`int`: pixels per token along each side of an image."""
        return 4 if self.architecture == "sqvae" else max(self.patch_size, 1) * 2 ** max(self.num_resizes, 0)

    @property
    def num_resizes(self) -> int:
        """`int`: how often a `"vqgan"` halves the sides, and doubles them."""
        last = max(len(self.channel_multiplier) - 1, 0)
        return last if self.num_downsamples is None else self.num_downsamples

    @property
    def resolutions(self) -> list[int]:
        """`list[int]`: side of the feature maps at each entry of `channel_multiplier` in the encoder."""
        side, count = self.image_size // self.patch_size, len(self.channel_multiplier)
        return [side >> min(level, self.num_resizes) for level in range(count)]

    @property
    def decoder_resolutions(self) -> list[int]:
        """`list[int]`: the same in the decoder, which runs from the last entry to the first."""
        side, last = self.image_size // self.patch_size, len(self.channel_multiplier) - 1
        return [side >> max(level - last + self.num_resizes, 0) for level in range(last + 1)]

    @property
    def code_dim(self) -> int:
        """`int`: dimensions of a code."""
        is_split = self.quantizer_type in ("group", "lfq", "bsq")
        return self.embed_dim // self.num_groups if is_split else self.embed_dim

    def quantizer_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for the quantizer layer that `quantizer_type` names.

        Returns:
            `dict`: arguments of the layer's class.
        """
        return self._quantizer_kwargs(self.embed_dim, dim=1)

    def validate_architecture(self) -> None:
        """Checks the autoencoder's fields against each other; run when a config is made and when it is saved."""
        super().validate_architecture()
        check_pixel_range(self.pixel_range)
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
        decoder = self.decoder_channel_multiplier or self.channel_multiplier
        if len(decoder) != len(self.channel_multiplier) or min(decoder) < 1:
            raise ValueError(
                f"`decoder_channel_multiplier` needs {len(self.channel_multiplier)} entries of at least 1, one for "
                f"each of `channel_multiplier`, got {self.decoder_channel_multiplier}."
            )
        if self.patch_size < 1 or self.patch_size & (self.patch_size - 1):
            raise ValueError(f"`patch_size` must be a power of two, got {self.patch_size}.")
        if not 0 <= self.num_resizes < len(self.channel_multiplier):
            raise ValueError(
                f"`num_downsamples` must be in [0, {len(self.channel_multiplier) - 1}], below the number of entries "
                f"of `channel_multiplier`, got {self.num_downsamples}."
            )
        if self.image_size < 1 or self.image_size % self.downsample_factor:
            raise ValueError(
                f"`image_size` must be a positive multiple of the downsample factor {self.downsample_factor}, "
                f'got {self.image_size}. The factor is 4 for "sqvae"; for "vqgan" each entry of `channel_multiplier` '
                "after the first doubles it."
            )
        widest = max(*self.channel_multiplier, *decoder, 1) * self.base_channels
        require_weight("`base_channels` and `channel_multiplier`", widest, widest, 3, 3)
        require_weight("`latent_channels`", self.latent_channels, widest, 3, 3)
        if self.architecture == "vqgan":
            self._validate_vqgan()
        elif (self.decoder_channel_multiplier, self.num_downsamples, self.patch_size) != (None, None, 1):
            raise ValueError(
                "`decoder_channel_multiplier`, `num_downsamples` and `patch_size` need "
                f'`architecture="vqgan"`, got {self.architecture!r}.'
            )
        elif self.architecture == "magvit2":
            groups = self.norm_num_groups
            if any(self.base_channels * multiplier % groups for multiplier in (1, *self.channel_multiplier)):
                raise ValueError(
                    f'`norm_num_groups={groups}` must divide every width of a "magvit2", got {self.base_channels} '
                    f"times 1 and {self.channel_multiplier}."
                )
        elif self.base_channels % 2:
            raise ValueError(f'`base_channels` must be even for "sqvae", got {self.base_channels}.')

    def validate_quantizer(self) -> None:
        """Checks the quantizer's fields against each other; run when a config is made and when it is saved."""
        self._check_quantizer(self.embed_dim, "`embed_dim`")

    def _validate_vqgan(self) -> None:
        attn_resolutions = self.attn_resolutions or []
        unknown = sorted(set(attn_resolutions) - set(self.resolutions) - set(self.decoder_resolutions))
        if unknown:
            raise ValueError(
                f"`attn_resolutions` names {unknown}, but at `image_size={self.image_size}` the network has the "
                f"resolutions {self.resolutions}. Choose among these, or leave it at None for the lowest one."
            )
        decoder = self.decoder_channel_multiplier or self.channel_multiplier
        levels = [*zip(self.channel_multiplier, self.resolutions, strict=True)]
        levels += zip(decoder, self.decoder_resolutions, strict=True)
        widths = {multiplier * self.base_channels for multiplier, side in levels if side in attn_resolutions}
        if self.mid_block_add_attention:
            widths |= {self.channel_multiplier[-1] * self.base_channels, decoder[-1] * self.base_channels}
        for width in sorted(widths):
            if width % self.num_attention_heads:
                raise ValueError(
                    f"`num_attention_heads={self.num_attention_heads}` must divide the width of every attention "
                    f"block, but one has {width} channels."
                )


VQConfig.register_for_auto_class()

__all__ = ["VQConfig"]
