# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Lookup-free quantization: the sign of each channel is a bit of the token, without a codebook."""

from __future__ import annotations

from typing import Any

import torch

from .base_quantizer_vq import Quantizer
from .checks_quantizer_vq import ENTROPY, check_quantizer
from .entropy_vq import EntropyLoss
from .gradient_vq import pass_gradient
from .limits_vq import require_listable
from .quantizer_output_vq import QuantizerOutput

LFQ = """@inproceedings{yu2024language,
  title     = {Language Model Beats Diffusion -- Tokenizer is Key to Visual Generation},
  author    = {Yu, Lijun and Lezama, Jos{\\'e} and Gundavarapu, Nitesh B. and Versari, Luca and Sohn, Kihyuk and
               Minnen, David and Cheng, Yong and Gupta, Agrim and Gu, Xiuye and Hauptmann, Alexander G. and
               Gong, Boqing and Yang, Ming-Hsuan and Essa, Irfan and Ross, David A. and Jiang, Lu},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  eprint    = {2310.05737},
  archivePrefix = {arXiv}
}"""


class LookupFreeQuant(Quantizer):
    """Lookup-free quantization (Yu et al., ICLR 2024): a vector's code is its signs, -1 or 1.

    The training loss is `mean((z - sg z_q)^2) + entropy_weight (E[H(p(z))] - entropy_diversity H(E[p(z)]))`, where
    `p(z) = softmax(2 z . c / entropy_temperature)` over all codes c: a vector is sure of its code, and all codes are
    used. The bits of p are independent, so both entropies are exact for any number of codes. In eval the loss is the
    first term alone.

    Args:
        feature_size: size of the quantized axis, `groups` times the bits of a token.
        num_codes: `2^bits`, which is the default; at most 2^24.
        dim: the axis to quantize.
        groups: tokens for each position, each of an equal slice of the channels; their codes are the same.
        entropy_weight: weight of the entropies, at least 0; 0 leaves them out.
        entropy_diversity: weight of the entropy of the mean assignment beside the other one, at least 0.
        entropy_temperature: of the soft assignment, above 0.

    Raises:
        ValueError: for values that make no sense, alone or together.
    """

    kind = "lfq"
    takes_mask = True

    def __init__(
        self,
        feature_size: int,
        num_codes: int | None = None,
        dim: int = 1,
        *,
        groups: int = 1,
        entropy_weight: float = 0.1,
        entropy_diversity: float = 1.0,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        self.feature_size, self.dim, self.groups = feature_size, dim, groups
        self.num_codes = 2 ** (feature_size // max(1, groups)) if num_codes is None else num_codes
        shape = {"feature_size": feature_size, "num_codes": self.num_codes, "groups": groups}
        entropy = (entropy_weight, entropy_diversity, entropy_temperature)
        check_quantizer(self.kind, shape | dict(zip(ENTROPY, entropy, strict=True)))
        self.code_dim = feature_size // groups
        self.entropy_loss = EntropyLoss(*entropy)

    @property
    def code_value(self) -> float:
        """Size of every entry of a code."""
        return 1.0

    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes `z`; its gradient passes the signs straight through."""
        x = self._prepare(z)
        positive = x > 0  # what is not finite still gets an id that exists
        codes = torch.where(positive, self.code_value, -self.code_value).to(x.dtype)
        squared = (x - codes).square().sum(-1)
        kept = None if mask is None else mask.unsqueeze(-1).expand(squared.shape)
        size: Any = max(1, x.numel())
        if kept is not None:
            squared, size = torch.where(kept, squared, 0.0), (kept.sum() * self.code_dim).clamp_min(1)
        loss = squared.sum() / size
        if self.training and self.entropy_loss.weight > 0:
            flat = None if kept is None else kept.flatten()
            loss = loss + self.entropy_loss.of_signs(x.flatten(0, -2), self.code_value, flat)
        q = (positive.long() << torch.arange(self.code_dim, device=x.device)).sum(-1)
        quantized = pass_gradient(x, codes)
        return self._restore(quantized), QuantizerOutput(z=x, z_q=codes, q=q, loss=loss)

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        """Codes of the ids `q` `(..., groups)`, float32, in the layout of the layer's output."""
        q = self.check_ids(q)
        bits = q.unsqueeze(-1) >> torch.arange(self.code_dim, device=q.device) & 1
        codes = torch.where(bits > 0, self.code_value, -self.code_value)
        return self._restore(codes if q.ndim > 1 else codes.unsqueeze(0))

    def get_codebook(self) -> torch.Tensor:
        """All codes, `(num_codes, code_dim)`, float32.

        Raises:
            ValueError: there are more than 2^20.
        """
        require_listable(f"{self.code_dim} bits", self.num_codes)
        bits = torch.arange(self.num_codes)[:, None] >> torch.arange(self.code_dim) & 1
        return torch.where(bits > 0, self.code_value, -self.code_value)

    def unquantized(self, z: torch.Tensor) -> torch.Tensor:
        """What the signs are taken of."""
        return self._restore(self._prepare(z.to(torch.promote_types(z.dtype, torch.float32)))).to(z.dtype)

    def _prepare(self, z: torch.Tensor) -> torch.Tensor:
        """`(..., groups, code_dim)`."""
        return z.moveaxis(self.dim, -1).contiguous().unflatten(-1, (self.groups, self.code_dim))

    def _restore(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(-2).moveaxis(-1, self.dim)

    @classmethod
    def card_words(cls, config: Any) -> str:
        """The number of bits, and the entropies' weights."""
        bits = config.num_codes.bit_length() - 1
        tokens = "one token" if config.num_groups == 1 else f"{config.num_groups} tokens"
        entropy = f", entropy loss of weight {config.entropy_weight:g}" if config.entropy_weight else ""
        return f"{cls.words} to {bits} bits, {tokens} per position{entropy}"

    words = "lookup-free quantization"

    @classmethod
    def cited_works(cls, config: Any) -> list[str]:
        """Of LFQ."""
        return [LFQ]

    def extra_repr(self) -> str:
        return f"feature_size={self.feature_size}, num_codes={self.num_codes}, groups={self.groups}, dim={self.dim}"


__all__ = ["LookupFreeQuant"]
