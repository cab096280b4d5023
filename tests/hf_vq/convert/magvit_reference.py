"""Open-MAGVIT2, rebuilt small from its published module names, shapes and formulas.

It is independent of the package, so that it can be compared with it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, before, eps=1e-6), nn.GroupNorm(32, after, eps=1e-6)
        self.conv1, self.conv2 = (nn.Conv2d(width, after, 3, 1, 1, bias=False) for width in (before, after))
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Style(nn.Module):
    """The mean and the deviation of the codes over the image shift and scale normalized features."""

    def __init__(self, bits: int, width: int):
        super().__init__()
        self.gamma, self.beta = nn.Linear(bits, width), nn.Linear(bits, width)

    def forward(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        count = codes[0, 0].numel()
        mean = codes.sum((2, 3)) / count
        variance = (codes - mean[:, :, None, None]).square().sum((2, 3)) / (count - 1)
        scale = self.gamma((variance + 1e-6).sqrt())
        return scale[:, :, None, None] * F.group_norm(x, 32, eps=1e-6) + self.beta(mean)[:, :, None, None]


class Upsample(nn.Module):
    """Four times as many channels, which become four pixels: first all channels of the first pixel."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        larger = x.new_zeros(len(x), x.shape[1] // 4, 2 * x.shape[2], 2 * x.shape[3])
        for number, part in enumerate(x.chunk(4, 1)):
            larger[..., number // 2 :: 2, number % 2 :: 2] = part
        return larger


def stack(count: int, before: int, after: int) -> nn.ModuleList:
    return nn.ModuleList(Block(after if number else before, after) for number in range(count))


class OpenMagvit2(nn.Module):
    """A token is a number whose bits, the lowest first, are the signs of the channels. A zero counts as negative.

    Encode maps pixels to ids (batch, h, w), decode maps ids to pixels.
    """

    def __init__(self, width: int = 32, multipliers: tuple[int, ...] = (1, 2, 2), blocks: int = 3, bits: int = 6):
        super().__init__()
        widths = [width * each for each in multipliers]
        self.powers = 2 ** torch.arange(bits)
        encoder, decoder = nn.Module(), nn.Module()
        self.encoder: Any = encoder
        self.decoder: Any = decoder
        self.encoder.conv_in = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.encoder.down = nn.ModuleList()
        for level, channels in enumerate(widths):
            stage: Any = nn.Module()
            stage.block = stack(blocks, [width, *widths][level], channels)
            if level < len(widths) - 1:
                stage.downsample = nn.Conv2d(channels, channels, 3, 2, 1)
            self.encoder.down.append(stage)
        self.encoder.mid_block = stack(blocks, widths[-1], widths[-1])
        self.encoder.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.encoder.conv_out = nn.Conv2d(widths[-1], bits, 1)
        self.decoder.conv_in = nn.Conv2d(bits, widths[-1], 3, 1, 1)
        self.decoder.mid_block = stack(blocks, widths[-1], widths[-1])
        self.decoder.up, self.decoder.adaptive = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(widths):
            before = [*widths, widths[-1]][level + 1]
            stage = nn.Module()
            stage.block = stack(blocks, before, channels)
            if level:
                stage.upsample = Upsample(channels)
            self.decoder.up.append(stage)
            self.decoder.adaptive.append(Style(bits, before))
        self.decoder.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.decoder.conv_out = nn.Conv2d(widths[0], 3, 3, 1, 1)

    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.encoder.conv_in(pixels)
        for stage in self.encoder.down:
            for block in stage.block:
                x = block(x)
            x = stage.downsample(x) if hasattr(stage, "downsample") else x
        for block in self.encoder.mid_block:
            x = block(x)
        return self.encoder.conv_out(F.silu(self.encoder.norm_out(x)))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return ((self.latents(pixels).movedim(1, -1) > 0) * self.powers).sum(-1)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        codes = (ids[..., None] // self.powers % 2 * 2.0 - 1).movedim(-1, 1).to(self.decoder.conv_in.weight)
        x = self.decoder.conv_in(codes)
        for block in self.decoder.mid_block:
            x = block(x)
        for level in reversed(range(len(self.decoder.up))):
            x = self.decoder.adaptive[level](x, codes)
            for block in self.decoder.up[level].block:
                x = block(x)
            x = self.decoder.up[level].upsample(x) if level else x
        return self.decoder.conv_out(F.silu(self.decoder.norm_out(x)))
