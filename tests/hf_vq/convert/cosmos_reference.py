"""NVIDIA's Cosmos Tokenizer of images with discrete tokens, rebuilt small from published names, shapes and formulas.

It is independent of the package, so that it can be compared with it.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

VQGAN = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("vqgan_references.py"))))
LOW, HIGH = torch.tensor([0.5, 0.5]), torch.tensor([0.5, -0.5])


def kernels(like: torch.Tensor) -> torch.Tensor:
    """The means and differences of 2 x 2 pixels (4, 1, 2, 2): filter along the width, then along the height."""
    pairs = [(along_width, along_height) for along_width in (LOW, HIGH) for along_height in (LOW, HIGH)]
    return torch.stack([height[:, None] * width for width, height in pairs])[:, None].to(like)


def transform(x: torch.Tensor) -> torch.Tensor:
    """(batch, c, h, w) to (batch, 4 c, h / 2, w / 2): all channels of a filter, then those of the next."""
    parts = [F.conv2d(x, kernel.expand(x.shape[1], 1, 2, 2), stride=2, groups=x.shape[1]) for kernel in kernels(x)]
    return torch.cat(parts, 1)


def inverse(x: torch.Tensor) -> torch.Tensor:
    parts = x.chunk(4, 1)
    count = parts[0].shape[1]
    return sum(
        F.conv_transpose2d(part, 4 * kernel.expand(count, 1, 2, 2), stride=2, groups=count)
        for part, kernel in zip(parts, kernels(x), strict=True)
    )  # type: ignore[return-value]


class Levels(nn.Module):
    """Finite scalar quantization, with its levels in a buffer that a state dict lacks."""

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        basis = torch.tensor([1, *levels[:-1]]).cumprod(0)
        self.register_buffer("_basis", basis, persistent=False)
        self._levels: torch.Tensor
        self._basis: torch.Tensor

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Vectors (batch, channels, h, w) to ids (batch, h, w)."""
        half = (self._levels - 1).to(z.dtype) * 1.001 / 2
        offset = (self._levels % 2 == 0) * 0.5
        bounded = torch.tanh(z.movedim(1, -1) + torch.atanh(offset / half)) * half - offset
        return ((bounded.round().long() + self._levels // 2) * self._basis).sum(-1)

    def codes(self, ids: torch.Tensor) -> torch.Tensor:
        digits = ids[..., None] // self._basis % self._levels
        return ((digits - self._levels // 2) / (self._levels // 2)).movedim(-1, 1)


class Stack(nn.Module):
    """Encoder or decoder between wavelets and latents, with `steps` steps down or up after its first levels."""

    def __init__(self, widths: list[int], base: int, blocks: int, steps: int, is_decoder: bool):
        super().__init__()
        self.is_decoder = is_decoder
        order = list(range(len(widths)))[:: -1 if is_decoder else 1]
        levels, width = {}, widths[-1] if is_decoder else base
        for number, level in enumerate(order):
            stage: Any = nn.Module()
            ends = [width, *[widths[level]] * (blocks + is_decoder)]
            stage.block = nn.ModuleList(VQGAN.Residual(*pair) for pair in zip(ends[:-1], ends[1:], strict=True))
            width = widths[level]
            if number < steps:
                stage.add_module("upsample" if is_decoder else "downsample", VQGAN.Resample(width, is_decoder))
            levels[level] = stage
        stages = nn.ModuleList(levels[level] for level in sorted(levels))
        self.add_module("up" if is_decoder else "down", stages)
        self.mid: Any = nn.Module()
        middle = widths[-1]
        self.mid.block_1, self.mid.block_2 = VQGAN.Residual(middle, middle), VQGAN.Residual(middle, middle)
        self.mid.attn_1 = VQGAN.Attention(middle)
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_in: nn.Conv2d
        self.conv_out: nn.Conv2d

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        x = self.middle(x) if self.is_decoder else x
        stages: Any = self.up if self.is_decoder else self.down
        for stage in list(stages)[:: -1 if self.is_decoder else 1]:
            for block in stage.block:
                x = block(x)
            for name in ("upsample", "downsample"):
                x = getattr(stage, name)(x) if hasattr(stage, name) else x
        x = x if self.is_decoder else self.middle(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Cosmos(nn.Module):
    """Encode maps pixels to ids (batch, h, w), decode maps ids to pixels."""

    def __init__(
        self,
        base: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 1,
        z_channels: int = 12,
        levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5),
        patch_size: int = 4,
        steps: int = 2,
    ):
        super().__init__()
        widths, self.patch_size = [base * each for each in multipliers], patch_size
        self.encoder, self.decoder = (Stack(widths, base, blocks, steps, is_decoder) for is_decoder in (False, True))
        self.encoder.conv_in = nn.Conv2d(3 * patch_size**2, base, 3, 1, 1)
        self.encoder.conv_out = nn.Conv2d(widths[-1], z_channels, 3, 1, 1)
        self.decoder.conv_in = nn.Conv2d(z_channels, widths[-1], 3, 1, 1)
        self.decoder.conv_out = nn.Conv2d(widths[0], 3 * patch_size**2, 3, 1, 1)
        self.quant_conv = nn.Conv2d(z_channels, len(levels), 1)
        self.post_quant_conv = nn.Conv2d(len(levels), z_channels, 1)
        self.quantizer = Levels(levels)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        for _ in range(self.patch_size.bit_length() - 1):
            pixels = transform(pixels)
        return self.quantizer(self.quant_conv(self.encoder(pixels)))

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        pixels = self.decoder(self.post_quant_conv(self.quantizer.codes(ids).to(self.quant_conv.weight.dtype)))
        for _ in range(self.patch_size.bit_length() - 1):
            pixels = inverse(pixels)
        return pixels

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(pixels))
