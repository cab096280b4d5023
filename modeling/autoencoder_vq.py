# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Encoders and decoders between pixels and latents.

There are two backbones. Each is a pair with the same interface: the encoder maps (batch, num_channels, height, width)
to (batch, latent_channels, height / f, width / f), and the decoder maps back. f is the config's `downsample_factor`.

- VQGAN has residual blocks with group norm and SiLU, and attention where the config asks for it. Its modules have the
  names of the original VQGAN code, so weights trained with that code or its descendants load under their own names.
- SQ-VAE is the small batch-norm network of the SQ-VAE experiments, for images of about 32 px.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention_vq import eager_attention_forward
from .batch_norm_vq import BatchNorm2d
from .configuration_vq import VQConfig
from .pixel_range_vq import UNIT, convert_pixels
from .wavelets_vq import from_wavelets, to_wavelets


def _group_norm(config: VQConfig, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(config.norm_num_groups, channels), channels, eps=1e-6)


def _is_private(module: nn.Module) -> bool:
    """Whether only its caller sees the output of a convolution or a norm, so that the caller may overwrite it.

    Autograd, hooks, a `forward` that somebody wrapped, and modules of another class may all keep the output, or hand
    out their input. Compilers plan the memory better without.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and type(module) in (nn.Conv2d, nn.GroupNorm)
        and "forward" not in vars(module)
        and not module._forward_hooks
        and not nn.modules.module._global_forward_hooks
    )


def _norm_silu(norm: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Computes `silu(norm(features))`. Without gradients and hooks it needs one feature map less."""
    return F.silu(norm(features), inplace=_is_private(norm))


def _add_to(module: nn.Module, features: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Computes `module(features) + residual`. Without gradients and hooks it needs one feature map less."""
    output = module(features)
    return output.add_(residual) if _is_private(module) else output + residual


class VQGANResnetBlock(GradientCheckpointingLayer):
    """Group norm, SiLU and a 3 x 3 convolution, twice, added to the input.

    If the number of channels changes, a 1 x 1 convolution adapts the input.
    """

    def __init__(self, config: VQConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _group_norm(config, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _group_norm(config, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps (batch, in_channels, height, width) to (batch, out_channels, height, width)."""
        residual = hidden_states if self.nin_shortcut is None else self.nin_shortcut(hidden_states)
        hidden_states = self.conv1(_norm_silu(self.norm1, hidden_states))
        return _add_to(self.conv2, self.dropout(_norm_silu(self.norm2, hidden_states)), residual)


class VQGANAttentionBlock(GradientCheckpointingLayer):
    """Self-attention over all positions of a feature map, added to its input."""

    def __init__(self, config: VQConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        # transformers' attention functions read these four attributes.
        self.head_dim = channels // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.num_key_value_groups = 1
        self.norm = _group_norm(config, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the new feature map, in the shape of the old one, and the attention weights if there are any."""
        normed = self.norm(hidden_states)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            self._split_heads(self.q(normed)),
            self._split_heads(self.k(normed)),
            self._split_heads(self.v(normed)),
            None,
            dropout=0.0,
            scaling=self.scaling,
            is_causal=False,
            **kwargs,
        )
        output = output.flatten(2).transpose(1, 2).unflatten(2, hidden_states.shape[2:])
        return _add_to(self.proj_out, output, hidden_states), weights

    def _split_heads(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (batch, channels, height, width) to (batch, heads, height * width, head_dim).

        Fused attention needs the last axis contiguous. With the channels-last memory format nothing is copied.
        """
        features = features.permute(0, 2, 3, 1).flatten(1, 2)
        return features.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)


class VQGANDownsample(nn.Module):
    """Halves both sides with a strided convolution. It pads only the right and the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps (batch, channels, height, width) to (batch, channels, height / 2, width / 2)."""
        return self.conv(F.pad(hidden_states, (0, 1, 0, 1)))


class VQGANUpsampledConv(nn.Conv2d):
    """Repeats each pixel 2 x 2 times and applies a 3 x 3 convolution."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Maps (batch, channels, height, width) to (batch, channels, 2 * height, 2 * width)."""
        if input.device.type != "cpu":
            return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))
        # One transposed convolution does both steps, with 16 instead of 36 multiplications for each input pixel. An
        # entry of its kernel is the sum of the weights that see the same input pixel.
        kernel = F.pad(self.weight.transpose(0, 1).flip(2, 3), (1, 1, 1, 1))
        kernel = kernel[..., 1:, :] + kernel[..., :-1, :]
        kernel = kernel[..., 1:] + kernel[..., :-1]
        return F.conv_transpose2d(input, kernel, self.bias, stride=2, padding=1)


class VQGANUpsample(nn.Module):
    """Doubles both sides by repeating pixels, and applies a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = VQGANUpsampledConv(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps (batch, channels, height, width) to (batch, channels, 2 * height, 2 * width)."""
        return self.conv(hidden_states)


class VQGANLevel(nn.Module):
    """The blocks of one resolution. They end with the step down or up to the next resolution, if there is one."""

    def __init__(
        self,
        config: VQConfig,
        side: int,
        in_channels: int,
        channels: int,
        num_blocks: int,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        has_attention = side in (config.attn_resolutions or [])
        self.block = nn.ModuleList(
            VQGANResnetBlock(config, in_channels if index == 0 else channels, channels) for index in range(num_blocks)
        )
        self.attn = nn.ModuleList(VQGANAttentionBlock(config, channels) for _ in range(num_blocks * has_attention))
        self.downsample = VQGANDownsample(channels) if downsample else None
        self.upsample = VQGANUpsample(channels) if upsample else None

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Maps (batch, in_channels, height, width) to (batch, channels of the level, new height, new width)."""
        for index, block in enumerate(self.block):
            hidden_states = block(hidden_states)
            if len(self.attn):
                hidden_states, _ = self.attn[index](hidden_states, **kwargs)
        if self.downsample is not None:
            hidden_states = self.downsample(hidden_states)
        if self.upsample is not None:
            hidden_states = self.upsample(hidden_states)
        return hidden_states


class VQGANMiddle(nn.Module):
    """Two residual blocks at the lowest resolution, with attention between them if the config asks for it."""

    def __init__(self, config: VQConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = VQGANResnetBlock(config, channels, channels)
        self.attn_1 = VQGANAttentionBlock(config, channels) if config.mid_block_add_attention else None
        self.block_2 = VQGANResnetBlock(config, channels, channels)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Keeps the shape."""
        hidden_states = self.block_1(hidden_states)
        if self.attn_1 is not None:
            hidden_states, _ = self.attn_1(hidden_states, **kwargs)
        return self.block_2(hidden_states)


class VQGANEncoder(nn.Module):
    """The VQGAN encoder. `down.0` works at the image's resolution, the last `down` at the resolution of the tokens."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multiplier]
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(config.num_channels * config.patch_size**2, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            VQGANLevel(
                config,
                config.resolutions[level],
                in_channels=config.base_channels if level == 0 else widths[level - 1],
                channels=widths[level],
                num_blocks=config.num_res_blocks,
                downsample=level < config.num_resizes,
            )
            for level in range(len(widths))
        )
        self.mid = VQGANMiddle(config, widths[-1])
        self.norm_out = _group_norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Maps (batch, num_channels, height, width) to (batch, latent_channels, height / f, width / f)."""
        hidden_states = self.conv_in(to_wavelets(pixel_values, self.patch_size))
        for level in self.down:
            hidden_states = level(hidden_states, **kwargs)
        hidden_states = self.mid(hidden_states, **kwargs)
        return self.conv_out(_norm_silu(self.norm_out, hidden_states))


class VQGANDecoder(nn.Module):
    """The VQGAN decoder. It mirrors the encoder, with one more block for each resolution and perhaps other widths.

    `up.0` works at the image's resolution, like `down.0`, so it runs last.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        multipliers = config.decoder_channel_multiplier or config.channel_multiplier
        widths = [config.base_channels * multiplier for multiplier in multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = VQGANMiddle(config, widths[-1])
        self.up = nn.ModuleList(
            VQGANLevel(
                config,
                config.decoder_resolutions[level],
                in_channels=widths[min(level + 1, last)],
                channels=widths[level],
                num_blocks=config.num_res_blocks + 1,
                upsample=level > last - config.num_resizes,
            )
            for level in range(len(widths))
        )
        self.norm_out = _group_norm(config, widths[0])
        self.patch_size = config.patch_size
        self.conv_out = nn.Conv2d(widths[0], config.num_channels * config.patch_size**2, 3, padding=1)

    def forward(self, latents: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Maps (batch, latent_channels, height, width) to (batch, num_channels, f * height, f * width)."""
        hidden_states = self.mid(self.conv_in(latents), **kwargs)
        for level in reversed(self.up):
            hidden_states = level(hidden_states, **kwargs)
        return from_wavelets(self.conv_out(_norm_silu(self.norm_out, hidden_states)), self.patch_size)


class SQVAEResBlock(GradientCheckpointingLayer):
    """ReLU, 3 x 3 convolution, batch norm, ReLU, 1 x 1 convolution, batch norm. The input is added to the result."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
            BatchNorm2d(channels),
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Keeps the shape."""
        return hidden_states + self.block(hidden_states)


class SQVAEEncoder(nn.Module):
    """The SQ-VAE encoder: two strided convolutions, a third convolution, then residual blocks."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        width = config.base_channels
        self.conv = nn.Sequential(
            nn.Conv2d(config.num_channels, width // 2, 4, stride=2, padding=1),
            BatchNorm2d(width // 2),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
            BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            BatchNorm2d(width),
            nn.ReLU(),
        )
        self.res = nn.Sequential(*(SQVAEResBlock(width) for _ in range(config.num_res_blocks)))

    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Maps (batch, num_channels, height, width) to (batch, base_channels, height / 4, width / 4)."""
        return self.res(self.conv(pixel_values))


class SQVAEDecoder(nn.Module):
    """The SQ-VAE decoder. It mirrors the encoder and ends with a sigmoid stretched over `pixel_range`."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        width = config.base_channels
        self.res = nn.Sequential(*(SQVAEResBlock(width) for _ in range(config.num_res_blocks)))
        self.convt = nn.Sequential(
            nn.ConvTranspose2d(width, width, 3, padding=1),
            BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
            BatchNorm2d(width // 2),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, config.num_channels, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, latents: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Maps (batch, base_channels, height, width) to (batch, num_channels, 4 * height, 4 * width)."""
        return convert_pixels(self.convt(self.res(latents)), UNIT, self.config.pixel_range)
