"""MaskGIT's VQGAN and MaskBit's, rebuilt small from their published module names, shapes and formulas.

They are independent of the package, so that it can be compared with them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Same(nn.Conv2d):
    """A convolution whose output is as large as its input, over its stride: an odd row of zeros goes to the end."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        margins = []
        for side in (3, 2):
            size, kernel, stride = input.shape[side], self.kernel_size[0], self.stride[0]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            margins += [total // 2, total - total // 2]
        return super().forward(F.pad(input, margins))


class Block(nn.Module):
    """The shortcut, where there is one, reads what the other branch gives."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(32, width, eps=1e-6) for width in (before, after))
        self.conv1, self.conv2 = Same(before, after, 3, bias=False), Same(after, after, 3, bias=False)
        if before != after:
            self.nin_shortcut = Same(after, after, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


class MaskGit(nn.Module):
    """Encode maps pixels in [0, 1] to ids (batch, h, w), decode maps ids to pixels.

    The names are those of open-muse: `down.{level}.block.{number}`, `mid.{number}`, `up.{level}.upsample_conv`, with
    the largest resolution at 0. Sides are halved by average pooling.
    """

    blocks_name, mid_name = "block", ""

    def __init__(
        self,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 1, 2),
        blocks: int = 2,
        z_channels: int = 8,
        num_codes: int = 64,
        decoder_blocks: int | None = None,
    ):
        super().__init__()
        widths = [width * each for each in multipliers]
        self.encoder: Any
        self.decoder: Any
        self.last = len(widths) - 1
        self.encoder, self.decoder = nn.Module(), nn.Module()
        encoder, decoder = self.encoder, self.decoder
        encoder.conv_in = Same(3, width, 3, bias=False)
        encoder.down = nn.ModuleList(self._stage(blocks, [width, *widths][i], widths[i]) for i in range(len(widths)))
        encoder.mid = self._stack(blocks, widths[-1], widths[-1])
        encoder.norm_out, encoder.conv_out = nn.GroupNorm(32, widths[-1], eps=1e-6), Same(widths[-1], z_channels, 1)
        blocks = decoder_blocks or blocks
        decoder.conv_in, decoder.mid = Same(z_channels, widths[-1], 3), self._stack(blocks, widths[-1], widths[-1])
        up = [self._stage(blocks, [*widths, widths[-1]][i + 1], widths[i]) for i in range(len(widths))]
        for stage, channels in zip(up[1:], widths[1:], strict=True):
            stage.upsample_conv = Same(channels, channels, 3)
        decoder.up = nn.ModuleList(up)
        decoder.norm_out, decoder.conv_out = nn.GroupNorm(32, widths[0], eps=1e-6), Same(widths[0], 3, 3)
        self.quantize: Any = nn.Module()
        self.add_codes(num_codes, z_channels)

    def add_codes(self, num_codes: int, dimensions: int) -> None:
        self.quantize.embedding = nn.Embedding(num_codes, dimensions)

    def codes(self) -> torch.Tensor:
        return self.quantize.embedding.weight

    def _stack(self, count: int, before: int, after: int) -> Any:
        blocks = nn.ModuleList(Block(before if number == 0 else after, after) for number in range(count))
        return self._named(blocks) if self.mid_name else blocks

    def _stage(self, count: int, before: int, after: int) -> Any:
        return self._named(nn.ModuleList(Block(after if number else before, after) for number in range(count)))

    def _named(self, blocks: nn.ModuleList) -> Any:
        stage = nn.Module()
        stage.add_module(self.blocks_name, blocks)
        return stage

    def _run(self, stage: Any, x: torch.Tensor) -> torch.Tensor:
        for block in stage if isinstance(stage, nn.ModuleList) else getattr(stage, self.blocks_name):
            x = block(x)
        return x

    def smaller(self, stage: Any, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 2)

    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.encoder.conv_in(pixels)
        for level, stage in enumerate(self.encoder.down):
            x = self._run(stage, x)
            x = x if level == self.last else self.smaller(stage, x)
        x = self._run(self.encoder.mid, x)
        return self.encoder.conv_out(F.silu(self.encoder.norm_out(x)))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        z = self.latents(pixels).movedim(1, -1)
        return torch.cdist(z.flatten(0, 2).double(), self.codes().double()).argmin(1).view(z.shape[:-1])

    def levels(self) -> list[Any]:
        """The decoder's stages in running order."""
        return list(reversed(self.decoder.up))

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        x = self._run(self.decoder.mid, self.decoder.conv_in(self.codes()[ids].movedim(-1, 1)))
        for stage in self.levels():
            x = self._run(stage, x)
            if hasattr(stage, "upsample_conv"):
                x = stage.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.decoder.conv_out(F.silu(self.decoder.norm_out(x)))


class VQGANPlus(MaskGit):
    """Strided convolutions, and the decoder's stages numbered as they run."""

    blocks_name, mid_name = "res_blocks", "res_blocks"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.decoder.up = nn.ModuleList(reversed(self.decoder.up))
        for stage in self.encoder.down[:-1]:
            channels = stage.res_blocks[-1].conv2.out_channels
            stage.down_conv = Same(channels, channels, 3, stride=2)

    def smaller(self, stage: Any, x: torch.Tensor) -> torch.Tensor:
        return stage.down_conv(x)

    def levels(self) -> list[Any]:
        return list(self.decoder.up)


class LegacyVQGANPlus(MaskGit):
    """MaskGIT's tokenizer under the names of VQGAN+: average pooling, and the largest resolution at 0."""

    blocks_name, mid_name = "res_blocks", "res_blocks"


class MaskBit(VQGANPlus):
    """A token is a number whose bits, the lowest first, are the signs of the channels. A zero counts as negative."""

    def add_codes(self, num_codes: int, dimensions: int) -> None:
        assert num_codes == 2**dimensions
        self.quantize.register_buffer("bits_to_indices", 2 ** torch.arange(dimensions).int())
        bits = torch.arange(num_codes)[:, None] & self.quantize.bits_to_indices
        self.quantize.register_buffer("codebook", (bits != 0) * 2.0 - 1.0)

    def codes(self) -> torch.Tensor:
        return self.quantize.codebook

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return ((self.latents(pixels).movedim(1, -1) > 0) * self.quantize.bits_to_indices).sum(-1)
