# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The network of Open-MAGVIT2 (Luo et al. 2024): an encoder and a decoder of residual blocks, without attention.

The decoder reads the codes twice: as its input, and as a style, their mean and deviation over the image, which scale
and shift the features before each resolution.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .autoencoder_vq import VQGANResnetBlock
from .configuration_vq import VQConfig

_EPS = 1e-6


def _blocks(config: VQConfig, in_channels: int, channels: int) -> nn.ModuleList:
    widths = [in_channels] + [channels] * config.num_res_blocks
    return nn.ModuleList(VQGANResnetBlock(config, *ends) for ends in zip(widths[:-1], widths[1:], strict=True))


class MAGVITLevel(nn.Module):
    """The blocks of one resolution, and the step down or up to the next one, if there is one."""

    def __init__(
        self,
        config: VQConfig,
        in_channels: int,
        channels: int,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.block = _blocks(config, in_channels, channels)
        self.downsample = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if downsample else None
        self.upsample = nn.Conv2d(channels, 4 * channels, 3, padding=1) if upsample else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps (batch, in_channels, height, width) to (batch, channels, new height, new width)."""
        for block in self.block:
            hidden_states = block(hidden_states)
        if self.downsample is not None:
            hidden_states = self.downsample(hidden_states)
        if self.upsample is not None:
            hidden_states = F.pixel_shuffle(self.upsample(hidden_states), 2)
        return hidden_states


class MAGVITStyleNorm(nn.Module):
    """Group norm, scaled by a map of the codes' deviations over the image and shifted by one of their means."""

    def __init__(self, config: VQConfig, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=_EPS, affine=False)
        self.gamma = nn.Linear(config.latent_channels, channels)
        self.beta = nn.Linear(config.latent_channels, channels)

    def forward(self, hidden_states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Keeps the shape (batch, channels, height, width); the latents are (batch, latent_channels, h, w)."""
        values = latents.flatten(2)
        scale = self.gamma((values.var(-1) + _EPS).sqrt())
        return scale[:, :, None, None] * self.norm(hidden_states) + self.beta(values.mean(-1))[:, :, None, None]


class MAGVITEncoder(nn.Module):
    """The encoder. `down.0` works at the image's resolution, the last `down` at the resolution of the tokens."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multiplier]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.num_channels, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            MAGVITLevel(config, before, width, downsample=level < last)
            for level, (before, width) in enumerate(zip([config.base_channels, *widths[:-1]], widths, strict=True))
        )
        self.mid = _blocks(config, widths[-1], widths[-1])
        self.norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 1)

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Maps (batch, num_channels, height, width) to (batch, latent_channels, height / f, width / f)."""
        hidden_states = self.conv_in(pixel_values)
        for module in (*self.down, *self.mid):
            hidden_states = module(hidden_states)
        return self.conv_out(F.silu(self.norm_out(hidden_states)))


class MAGVITDecoder(nn.Module):
    """The decoder. `up.0` works at the image's resolution, like `down.0`, so it runs last."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multiplier]
        before = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = _blocks(config, widths[-1], widths[-1])
        self.adaptive = nn.ModuleList(MAGVITStyleNorm(config, width) for width in before)
        self.up = nn.ModuleList(
            MAGVITLevel(config, *ends, upsample=level > 0)
            for level, ends in enumerate(zip(before, widths, strict=True))
        )
        self.norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.num_channels, 3, padding=1)

    def forward(self, latents: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Maps (batch, latent_channels, height, width) to (batch, num_channels, f * height, f * width)."""
        hidden_states = self.conv_in(latents)
        for block in self.mid:
            hidden_states = block(hidden_states)
        for level in reversed(range(len(self.up))):
            hidden_states = self.up[level](self.adaptive[level](hidden_states, latents))
        return self.conv_out(F.silu(self.norm_out(hidden_states)))


__all__ = ["MAGVITDecoder", "MAGVITEncoder", "MAGVITStyleNorm"]
