# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Finite scalar quantization: each channel is bounded and rounded to a few levels, without a codebook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .base_quantizer_vq import Quantizer
from .checks_quantizer_vq import check_quantizer
from .gradient_vq import pass_gradient
from .limits_vq import require_listable
from .quantizer_output_vq import QuantizerOutput

_MARGIN = 1e-3  # of the bound beyond the outermost levels, so that these can be reached

FSQ = """@inproceedings{mentzer2024finite,
  title     = {Finite Scalar Quantization: {VQ-VAE} Made Simple},
  author    = {Mentzer, Fabian and Minnen, David and Agustsson, Eirikur and Tschannen, Michael},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  eprint    = {2309.15505},
  archivePrefix = {arXiv}
}"""
IFSQ = """@article{lin2026ifsq,
  title   = {{iFSQ}: Improving {FSQ} for Image Generation with 1 Line of Code},
  author  = {Lin, Bin and Li, Zongjian and Niu, Yuwei and Gong, Kaixiong and Ge, Yunyang and Lin, Yunlong and
             Zheng, Mingzhe and Zhang, JianWei and Yang, Miles and Zhong, Zhao and Bo, Liefeng and Yuan, Li},
  journal = {arXiv preprint arXiv:2601.17124},
  year    = {2026}
}"""


class FiniteScalarQuant(Quantizer):
    """Finite scalar quantization (Mentzer et al., ICLR 2024).

    A channel with L levels is bounded to an interval of length L - 1 and rounded there. The codes are all combinations
    of levels, scaled to [-1, 1]. There is nothing to train, so the loss is 0, and no code can die.

    Args:
        feature_size: size of the quantized axis, the number of levels.
        num_codes: the product of the levels, which is the default.
        dim: the axis to quantize.
        levels: of each channel, at least 2; the first channel's level changes fastest with the id.
        activation: what bounds a channel: "tanh", or "sigmoid" for `2 sigmoid(1.6 x) - 1` (iFSQ, Lin et al. 2026),
            under which a normally distributed channel becomes about uniform between its bounds.

    Raises:
        ValueError: for levels that make no sense, or that do not fit the other arguments.
    """

    takes_mask = True

    def __init__(
        self,
        feature_size: int | None = None,
        num_codes: int | None = None,
        dim: int = 1,
        *,
        levels: Sequence[int],
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.levels, self.activation, self.dim = list(levels), activation, dim
        self.num_codes = math.prod(self.levels) if num_codes is None else num_codes
        self.feature_size = self.code_dim = len(self.levels) if feature_size is None else feature_size
        arguments = {name: getattr(self, name) for name in ("feature_size", "num_codes", "levels", "activation")}
        check_quantizer("fsq", arguments)

    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes `z`; its gradient passes the rounding straight through. There is nothing to mask in here."""
        bounded = self._bounded(z.moveaxis(self.dim, -1))
        rounded = bounded.round()
        values, codes = (each / self._half_widths(z) for each in (bounded, rounded))
        quantized = pass_gradient(values, codes)
        # What is not finite still gets an id that exists.
        digits = (rounded + self._half_widths(z)).nan_to_num().clamp(min=0).long().minimum(self._levels(z.device) - 1)
        q = (digits * self._strides(z.device)).sum(-1, keepdim=True)
        output = QuantizerOutput(z=values.unsqueeze(-2), z_q=codes.detach().unsqueeze(-2), q=q)
        return quantized.moveaxis(-1, self.dim), output

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        """Codes of the ids `q` `(..., 1)`, float32, in the layout of the layer's output, which they equal exactly."""
        digits = self.check_ids(q) // self._strides(q.device) % self._levels(q.device)
        widths = self._half_widths(torch.empty((), device=q.device))
        codes = (digits - widths) / widths
        return (codes if q.ndim > 1 else codes.unsqueeze(0)).moveaxis(-1, self.dim)

    def get_codebook(self) -> torch.Tensor:
        """All codes, `(num_codes, code_dim)`, float32.

        Raises:
            ValueError: there are more than 2^20.
        """
        require_listable(f"levels {self.levels}", self.num_codes)
        return self.lookup(torch.arange(self.num_codes)[:, None]).moveaxis(self.dim, -1)

    def unquantized(self, z: torch.Tensor) -> torch.Tensor:
        """The bounded channels, scaled as the codes are but not rounded."""
        x = z.moveaxis(self.dim, -1).to(torch.promote_types(z.dtype, torch.float32))
        return (self._bounded(x) / self._half_widths(x)).moveaxis(-1, self.dim).to(z.dtype)

    def _bounded(self, x: torch.Tensor) -> torch.Tensor:
        """Eq. 1 of the paper: `(..., code_dim)`; with an even number of levels, zero is a level as well."""
        levels = self._levels(x.device).to(x.dtype)
        half_length = (levels - 1) * (1 + _MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0).to(x.dtype)
        shift = (offset / half_length).atanh()
        if self.activation == "tanh":
            return (x + shift).tanh() * half_length - offset
        shift = shift / 0.8  # 2 sigmoid(1.6 x) - 1 = tanh(0.8 x)
        return (2 * (1.6 * (x + shift)).sigmoid() - 1) * half_length - offset

    # Made of plain numbers at each call: buffers that are not saved would be lost when a model is loaded. Their copies
    # to the device are queued, and nobody waits for them.

    def _levels(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self.levels).to(device, non_blocking=True)

    def _strides(self, device: torch.device) -> torch.Tensor:
        strides = [math.prod(self.levels[:channel]) for channel in range(self.code_dim)]
        return torch.tensor(strides).to(device, non_blocking=True)

    def _half_widths(self, like: torch.Tensor) -> torch.Tensor:
        half_widths = torch.tensor([level // 2 for level in self.levels], dtype=like.dtype)
        return half_widths.to(like.device, non_blocking=True)

    @classmethod
    def card_words(cls, config: Any) -> str:
        """The levels, and the activation where it is another one."""
        levels = " x ".join(map(str, config.levels))
        activation = ", sigmoid activation (iFSQ)" if config.level_activation == "sigmoid" else ""
        return f"finite scalar quantization to {levels} levels, one code per position{activation}"

    @classmethod
    def card_loss(cls, config: Any) -> str:
        """None: there are no codes to commit to."""
        return ""

    @classmethod
    def cited_works(cls, config: Any) -> list[str]:
        """Of FSQ, and of iFSQ where its activation is used."""
        return [FSQ, IFSQ] if config.level_activation == "sigmoid" else [FSQ]

    def extra_repr(self) -> str:
        return f"levels={self.levels}, activation={self.activation}, dim={self.dim}"


__all__ = ["FiniteScalarQuant"]
