"""Tokenizers of other projects, rebuilt small from their published module names, shapes and formulas.

They are independent of the package, so that it can be compared with them: taming-transformers' VQGAN, whose shape
latent diffusion shares, IBQ's, LlamaGen's, and Show-o's tokenizer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Blocks = int | tuple[int, ...]  # of each resolution, a decoder having one more, or of each its own


class Residual(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, before, eps=1e-6)
        self.conv1 = nn.Conv2d(before, after, 3, 1, 1)
        self.norm2 = nn.GroupNorm(32, after, eps=1e-6)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        h = self.conv1(h * h.sigmoid())
        h = self.norm2(h)
        h = self.conv2(h * h.sigmoid())
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # (batch, width, positions)
        weights = (torch.einsum("bci,bcj->bij", q, k) / x.shape[1] ** 0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, width: int, up: bool):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(width, width, 3, 1, 1) if up else nn.Conv2d(width, width, 3, 2, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.up:
            return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Coder(nn.Module):
    """What both projects' encoders and decoders share. The sub-classes name the parts."""

    conv_in: nn.Conv2d
    conv_out: nn.Conv2d
    quant_conv: nn.Conv2d
    post_quant_conv: nn.Conv2d
    mid: Any

    def __init__(self, ch: int, ch_mult: tuple[int, ...], blocks: Blocks, attention: tuple[int, ...], decoder: bool):
        super().__init__()
        if isinstance(blocks, int):
            blocks = (blocks + decoder,) * len(ch_mult)
        self.order = list(range(len(ch_mult)))
        if decoder:
            self.order.reverse()
        width = ch * ch_mult[-1] if decoder else ch
        levels = {}
        for level in self.order:
            residuals, attentions = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks[level]):
                residuals.append(Residual(width, ch * ch_mult[level]))
                width = ch * ch_mult[level]
                if level in attention:
                    attentions.append(Attention(width))
            last = level == self.order[-1]
            levels[level] = (residuals, attentions, None if last else Resample(width, decoder))
        middle = ch * ch_mult[-1]
        self.decoder = decoder
        self.name_parts(levels, [Residual(middle, middle), Attention(middle), Residual(middle, middle)])
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)

    def name_parts(self, levels: dict, middle: list[nn.Module]) -> None:
        raise NotImplementedError

    def parts(self) -> tuple[list[tuple], list[nn.Module]]:
        """Returns levels in running order, each (residuals, attentions, resample or None), and the middle."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels, middle = self.parts()
        x = self.conv_in(x)
        for module in middle if self.decoder else []:
            x = module(x)
        for residuals, attentions, resample in levels:
            for number, residual in enumerate(residuals):
                x = residual(x)
                if len(attentions):
                    x = attentions[number](x)
            x = x if resample is None else resample(x)
        for module in [] if self.decoder else middle:
            x = module(x)
        x = self.norm_out(x)
        return self.conv_out(x * x.sigmoid())


class TamingCoder(Coder):
    """Names levels `down.{i}` or `up.{i}` by resolution, with `block`, `attn` and `downsample` or `upsample`."""

    def name_parts(self, levels: dict, middle: list[nn.Module]) -> None:
        self.key, self.resample = ("up", "upsample") if self.decoder else ("down", "downsample")
        stack = nn.ModuleList()
        for level in sorted(levels):
            module: Any = nn.Module()
            module.block, module.attn, resample = levels[level]
            if resample is not None:
                module.add_module(self.resample, resample)
            stack.append(module)
        self.add_module(self.key, stack)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = middle

    def parts(self) -> tuple[list[tuple], list[nn.Module]]:
        stack = getattr(self, self.key)
        levels = [(stack[i].block, stack[i].attn, getattr(stack[i], self.resample, None)) for i in self.order]
        return levels, [self.mid.block_1, self.mid.attn_1, self.mid.block_2]


class LlamaGenCoder(Coder):
    """Names levels `conv_blocks.{i}` in running order, with `res`, `attn` and `downsample` or `upsample`."""

    def name_parts(self, levels: dict, middle: list[nn.Module]) -> None:
        self.resample = "upsample" if self.decoder else "downsample"
        self.conv_blocks = nn.ModuleList()
        for level in self.order:
            module: Any = nn.Module()
            module.res, module.attn, resample = levels[level]
            if resample is not None:
                module.add_module(self.resample, resample)
            self.conv_blocks.append(module)
        self.mid = nn.ModuleList(middle)

    def parts(self) -> tuple[list[tuple], list[nn.Module]]:
        levels = [(block.res, block.attn, getattr(block, self.resample, None)) for block in self.conv_blocks]
        return levels, list(self.mid)


class Tokenizer(nn.Module):
    """A tokenizer whose encode maps pixels to ids (batch, h, w) and whose decode maps ids to pixels."""

    coder: type[Coder]
    unit_norm = False

    def __init__(
        self,
        ch: int = 32,
        ch_mult: tuple[int, ...] = (1, 2),
        blocks: int = 1,
        attention: tuple[int, ...] = (1,),
        z_channels: int = 12,
        embed_dim: int = 6,
        n_embed: int = 64,
    ):
        super().__init__()
        self.encoder = self.coder(ch, ch_mult, blocks, attention, decoder=False)
        self.encoder.conv_in = nn.Conv2d(3, ch, 3, 1, 1)
        self.encoder.conv_out = nn.Conv2d(ch * ch_mult[-1], z_channels, 3, 1, 1)
        self.decoder = self.coder(ch, ch_mult, blocks, attention, decoder=True)
        self.decoder.conv_in = nn.Conv2d(z_channels, ch * ch_mult[-1], 3, 1, 1)
        self.decoder.conv_out = nn.Conv2d(ch * ch_mult[0], 3, 3, 1, 1)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.quantize: Any = nn.Module()
        self.quantize.embedding = nn.Embedding(n_embed, embed_dim)
        nn.init.normal_(self.quantize.embedding.weight, std=0.3)

    def codes(self) -> torch.Tensor:
        codes = self.quantize.embedding.weight
        return F.normalize(codes, dim=1) if self.unit_norm else codes

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        z = self.quant_conv(self.encoder(pixels)).movedim(1, -1)
        if self.unit_norm:
            z = F.normalize(z, dim=-1)
        codes, vectors = self.codes().double(), z.flatten(0, -2).double()
        nearest = [(part[:, None] - codes).square().sum(-1).argmin(-1) for part in vectors.split(16)]
        return torch.cat(nearest).view(z.shape[:-1])

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(self.codes()[ids].movedim(-1, 1)))


class Taming(Tokenizer):
    coder = TamingCoder


class IBQ(Taming):
    """Taming's network; a token is the code of the largest dot product."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        z = self.quant_conv(self.encoder(pixels)).movedim(1, -1)
        return (z.double() @ self.codes().double().T).softmax(-1).argmax(-1)


class Gumbel(Taming):
    """Taming's network with a Gumbel-softmax quantizer; a token is the most likely one."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        count, width = self.quantize.embedding.weight.shape
        self.quantize = nn.Module()
        self.quantize.proj, self.quantize.embed = nn.Conv2d(width, count, 1), nn.Embedding(count, width)

    def codes(self) -> torch.Tensor:
        return self.quantize.embed.weight

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.quantize.proj(self.quant_conv(self.encoder(pixels))).argmax(1)


class RQVAE(Taming):
    """Taming's network. A place has several tokens, each the nearest code to what the ones before it leave."""

    def __init__(self, levels: int = 3, shared: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        count, width = self.quantize.embedding.weight.shape
        del self.quantize
        books = [nn.Embedding(count + 1, width, padding_idx=count) for _ in range(1 if shared else levels)]
        for book in books:
            book.register_buffer("cluster_size_ema", torch.zeros(count))
            book.register_buffer("embed_ema", torch.zeros(count, width))
        self.quantizer: Any = nn.Module()
        self.quantizer.codebooks = nn.ModuleList(books * levels if shared else books)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        rest, ids = self.quant_conv(self.encoder(pixels)).movedim(1, -1), []
        for book in self.quantizer.codebooks:
            codes = book.weight[:-1]
            ids.append((rest[..., None, :] - codes).square().sum(-1).argmin(-1))
            rest = rest - codes[ids[-1]]
        return torch.stack(ids, -1)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        parts = zip(self.quantizer.codebooks, ids.unbind(-1), strict=True)
        codes = sum(book.weight[level] for book, level in parts)
        return self.decoder(self.post_quant_conv(codes.movedim(-1, 1)))  # type: ignore[union-attr]


class LlamaGen(Tokenizer):
    """A tokenizer with vectors and codes on the unit sphere, and with a record of used codes among its buffers."""

    coder = LlamaGenCoder
    unit_norm = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.quantize.register_buffer("codebook_used", torch.zeros(16))


class ShowO(nn.Module):
    """Show-o's MAGVITv2, whose encoder and decoder have their own widths and numbers of blocks.

    A token is a number whose bits, the highest first, are the signs of the channels. A zero counts as negative.
    """

    def __init__(
        self,
        ch: int = 32,
        encoder_mult: tuple[int, ...] = (1, 2, 2),
        encoder_blocks: tuple[int, ...] = (2, 1, 2),
        decoder_mult: tuple[int, ...] = (1, 1, 2),
        decoder_blocks: tuple[int, ...] = (2, 2, 1),
        bits: int = 6,
    ):
        super().__init__()
        self.encoder = TamingCoder(ch, encoder_mult, encoder_blocks, (), decoder=False)
        self.encoder.conv_in = nn.Conv2d(3, ch, 3, 1, 1)
        self.encoder.conv_out = nn.Conv2d(ch * encoder_mult[-1], bits, 3, 1, 1)
        self.decoder = TamingCoder(ch, decoder_mult, decoder_blocks, (), decoder=True)
        self.decoder.conv_in = nn.Conv2d(bits, ch * decoder_mult[-1], 3, 1, 1)
        self.decoder.conv_out = nn.Conv2d(ch * decoder_mult[0], 3, 3, 1, 1)
        self.encoder.quant_conv, self.decoder.post_quant_conv = (nn.Conv2d(bits, bits, 1) for _ in range(2))
        self.quantize: Any = nn.Module()
        powers = 2 ** torch.arange(bits - 1, -1, -1)
        self.quantize.register_buffer("power_vals", powers)
        signs = torch.arange(2**bits)[:, None] // powers % 2 * 2.0 - 1
        self.quantize.register_buffer("embedding", signs)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        z = self.encoder.quant_conv(self.encoder(pixels)).movedim(1, -1)
        return ((z > 0) * self.quantize.power_vals).sum(-1)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.decoder.post_quant_conv(self.quantize.embedding[ids].movedim(-1, 1)))
