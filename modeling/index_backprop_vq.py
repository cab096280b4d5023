# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Index backpropagation: the gradient reaches every code, through a softmax over all of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .base_quantizer_vq import Quantizer
from .checks_quantizer_vq import ENTROPY, check_quantizer
from .entropy_vq import EntropyLoss
from .nearest_vq import is_exporting
from .precision_vq import at_least_float32, ieee_matmul
from .quantizer_output_vq import QuantizerOutput

IBQ = """@inproceedings{shi2025scalable,
  title     = {Scalable Image Tokenization with Index Backpropagation Quantization},
  author    = {Shi, Fengyuan and Luo, Zhuoyan and Ge, Yixiao and Yang, Yujiu and Shan, Ying and Wang, Limin},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year      = {2025},
  eprint    = {2412.02692},
  archivePrefix = {arXiv}
}"""

_SCORES = 2**24  # at once, for the ids


class PlainCodes(nn.Module):
    """Codes that are a parameter, `weight`."""

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_codes, code_dim, dtype=at_least_float32()))

    def forward(self) -> torch.Tensor:
        """All codes, `(num_codes, code_dim)`, float32 or better."""
        return self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))


class IndexBackpropQuant(Quantizer):
    """Index backpropagation quantization (IBQ, Shi et al. 2024): a vector's code has the largest dot product with it.

    The output is `a C` with the one-hot row a of the code, whose gradient is that of `softmax(z . C)`. So the task's
    gradient moves every code and the encoder through the same product, and nothing is copied straight through. The
    training loss is `mean((a C - z)^2) + mean((sg z_q - z)^2) + beta mean((z_q - sg z)^2)` plus `entropy_weight`
    times the entropies of `softmax(z . C / entropy_temperature)`, as those of [`LookupFreeQuant`].

    A training step holds a few tables of vectors x codes.

    Args:
        feature_size: size of the quantized axis and of a code.
        num_codes: number of codes.
        dim: the axis to quantize.
        codebook_weight: `beta` above, at least 0.
        entropy_weight: weight of the entropies, at least 0; 0 leaves them out.
        entropy_diversity: weight of the entropy of the mean assignment beside the other one, at least 0.
        entropy_temperature: of the entropies' assignment, above 0.

    Raises:
        ValueError: for values out of range.
    """

    takes_mask = True

    def __init__(
        self,
        feature_size: int,
        num_codes: int,
        dim: int = 1,
        *,
        codebook_weight: float = 0.25,
        entropy_weight: float = 0.1,
        entropy_diversity: float = 1.0,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        self.feature_size, self.num_codes, self.dim, self.code_dim = feature_size, num_codes, dim, feature_size
        settings = {"feature_size": feature_size, "num_codes": num_codes, "codebook_weight": codebook_weight}
        entropy = (entropy_weight, entropy_diversity, entropy_temperature)
        check_quantizer("ibq", settings | dict(zip(ENTROPY, entropy, strict=True)))
        self.codebook_weight, self.entropy_loss = codebook_weight, EntropyLoss(*entropy)
        self.codebook = PlainCodes(num_codes, feature_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normally distributed codes."""
        init.normal_(self.codebook.weight)

    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes `z`; the gradient is that of the softmax over all codes."""
        x = z.moveaxis(self.dim, -1).contiguous()
        vectors, codes = x.flatten(0, -2), self.codebook().to(x.dtype)
        kept = None if mask is None else mask.flatten()
        # As in evaluation and in full precision, whatever the products below have.
        index = _largest_products(vectors.detach(), codes.detach())
        z_q = quantized = F.embedding(index, codes)
        logits = vectors @ codes.T if self.training or torch.is_grad_enabled() else None
        if logits is not None:
            soft = logits.softmax(1) @ codes.detach()
            quantized = z_q + (soft - soft.detach())  # the bits of the code
        weight = torch.ones_like(vectors[:, 0]) if kept is None else kept.to(x.dtype)
        size = (weight.sum() * self.code_dim).clamp_min(1)
        errors = [
            (quantized - vectors, 1.0),
            (z_q.detach() - vectors, 1.0),
            (z_q - vectors.detach(), self.codebook_weight),
        ]
        loss: Any = sum(scale * (error.square().sum(1) * weight).sum() / size for error, scale in errors)
        if self.training and self.entropy_loss.weight > 0:
            assert logits is not None
            loss = loss + self.entropy_loss.of_logits(logits, weight)
        shape = x.shape[:-1]
        output = QuantizerOutput(
            z=x.unsqueeze(-2),
            z_q=z_q.unflatten(0, shape).unsqueeze(-2),
            q=index.unflatten(0, shape).unsqueeze(-1),
            loss=loss,
        )
        return quantized.unflatten(0, shape).moveaxis(-1, self.dim), output

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        """Codes of the ids `q` `(..., 1)`, float32 or better, in the layout of the layer's output."""
        codes = F.embedding(self.check_ids(q)[..., 0], self.codebook())
        return (codes if q.ndim > 1 else codes.unsqueeze(0)).moveaxis(-1, self.dim)

    @torch.no_grad()
    def get_codebook(self) -> torch.Tensor:
        """All codes, `(num_codes, code_dim)`, float32 or better; a copy."""
        return self.codebook().clone()

    @classmethod
    def card_words(cls, config: Any) -> str:
        """The rule of assignment, and the entropies' weight."""
        entropy = f", entropy loss of weight {config.entropy_weight:g}" if config.entropy_weight else ""
        return f"one code per position, by index backpropagation (IBQ){entropy}"

    @classmethod
    def cited_works(cls, config: Any) -> list[str]:
        """Of IBQ."""
        return [IBQ, "oord"]

    def extra_repr(self) -> str:
        return f"feature_size={self.feature_size}, num_codes={self.num_codes}, dim={self.dim}"


def _largest_products(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Ids of the codes with the largest dot products, `(N,)`, in bounded memory."""
    if is_exporting() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return (vectors @ codes.T).argmax(1)  # a graph for any number of vectors has no number of chunks
    with ieee_matmul():
        return torch.cat([(part @ codes.T).argmax(1) for part in vectors.split(max(1, _SCORES // len(codes)))])


__all__ = ["IndexBackpropQuant"]
