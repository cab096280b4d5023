"""A generator of Halton-MaskGIT, rebuilt small from its published module names, shapes and formulas.

It is independent of the package, so that it can be compared with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def rms(x: torch.Tensor) -> torch.Tensor:
    """Divides by the root of the mean square over the last axis."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


class Scale(nn.Module):
    def __init__(self, width: int, has_bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if has_bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms(x) * self.weight + (0 if self.bias is None else self.bias)


class Heads(nn.Module):
    """Attention whose queries and keys are normalized over all heads together."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (rms(self.wq(x)), rms(self.wk(x)), self.wv(x))
        )
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        return self.wo((weights @ v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.ln1, self.ln2 = Scale(width), Scale(width)
        self.attn, self.ff = Heads(width, heads), Gated(width, inner)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.mlp(y)[:, None].chunk(6, 2)
        x = x + gate1 * self.attn(self.ln1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.ff(self.ln2(x) * (1 + scale2) + shift2)


class Generator(nn.Module):
    """Maps tokens (batch, h, w) and labels to logits (batch, h * w, codes + 1). The token `codes` is a hidden one."""

    def __init__(
        self,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        inner: int = 96,
        side: int = 4,
        codes: int = 64,
        classes: int = 5,
    ):
        super().__init__()
        self.cls_emb, self.tok_emb = nn.Embedding(classes + 1, width), nn.Embedding(codes + 1, width)
        self.pos_emb, self.reg_tokens = nn.Embedding(side**2, width), nn.Embedding(1, width)
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(depth))
        self.last_norm = nn.Module()
        self.last_norm.norm_final = Scale(width, has_bias=True)
        self.last_norm.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, codes + 1)
        self.head.weight = self.tok_emb.weight

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        y = self.cls_emb(labels)
        x = self.tok_emb(tokens.flatten(1)) + self.pos_emb.weight
        x = torch.cat([x, self.reg_tokens.weight.expand(len(x), 1, -1)], 1)
        for layer in self.transformer.layers:  # type: ignore[union-attr]
            x = layer(x, y)
        shift, scale = self.last_norm.mlp(y)[:, None].chunk(2, 2)  # type: ignore[operator]
        return self.head(self.last_norm.norm_final(x[:, :-1]) * (1 + scale) + shift)  # type: ignore[operator]
