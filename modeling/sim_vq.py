# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Frozen codes behind a learned linear map, which moves all of them at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .base_quantizer_vq import Quantizer
from .checks_quantizer_vq import check_quantizer
from .gradient_vq import pass_gradient
from .nearest_vq import nearest_code
from .precision_vq import at_least_float32
from .quantizer_output_vq import QuantizerOutput

SIMVQ = """@inproceedings{zhu2025addressing,
  title     = {Addressing Representation Collapse in Vector Quantized Models with One Linear Layer},
  author    = {Zhu, Yongxin and Li, Bocheng and Xin, Yifei and Xia, Zhihua and Xu, Linli},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year      = {2025},
  eprint    = {2411.02038},
  archivePrefix = {arXiv}
}"""


class MappedCodes(nn.Module):
    """Codes `frozen_codes @ map`, float32 or better: a buffer and a parameter."""

    frozen_codes: torch.Tensor

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        dtype = at_least_float32()
        self.register_buffer("frozen_codes", torch.empty(num_codes, code_dim, dtype=dtype))
        self.map = nn.Parameter(torch.empty(code_dim, code_dim, dtype=dtype))

    def forward(self) -> torch.Tensor:
        """All codes, `(num_codes, code_dim)`."""
        dtype = torch.promote_types(self.map.dtype, torch.float32)
        return self.frozen_codes.to(dtype) @ self.map.to(dtype)


class SimVectorQuant(Quantizer):
    """SimVQ (Zhu et al. 2024): the codes are `C W` with random C, which stays, and a learned square matrix W.

    A gradient to any code moves W, and so all codes: none can die alone. The loss is
    `mean((sg z - z_q)^2) + encoder_weight mean((z - sg z_q)^2)`.

    Args:
        feature_size: size of the quantized axis and of a code.
        num_codes: number of codes.
        dim: the axis to quantize.
        encoder_weight: weight of the loss's term for the encoder, at least 0.
        gradient_estimator: "ste" (straight-through) or "rotation".

    Raises:
        ValueError: for values out of range.
    """

    takes_mask = True
    takes_nearest = True

    def __init__(
        self,
        feature_size: int,
        num_codes: int,
        dim: int = 1,
        *,
        encoder_weight: float = 0.25,
        gradient_estimator: str = "ste",
    ) -> None:
        super().__init__()
        settings = {"encoder_weight": encoder_weight, "gradient_estimator": gradient_estimator}
        check_quantizer("simvq", {"feature_size": feature_size, "num_codes": num_codes, **settings})
        self.feature_size, self.num_codes, self.dim, self.code_dim = feature_size, num_codes, dim, feature_size
        self.encoder_weight, self.gradient_estimator = encoder_weight, gradient_estimator
        self.codebook = MappedCodes(num_codes, feature_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Codes of about unit length, and a map as that of a linear layer."""
        bound = self.code_dim**-0.5
        init.normal_(self.codebook.frozen_codes, std=bound)
        init.uniform_(self.codebook.map, -bound, bound)

    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes `z`: the nearest codes, by Euclidean distance."""
        x = z.moveaxis(self.dim, -1).contiguous()
        codes = self.codebook().to(x.dtype)
        index = nearest_code(x.detach().flatten(0, -2), codes.detach()).unflatten(0, x.shape[:-1])
        z_q = F.embedding(index, codes)
        size: Any = max(1, x.numel())
        if mask is not None:
            z_q, size = torch.where(mask[..., None], z_q, 0.0), (mask.sum() * self.code_dim).clamp_min(1)
        loss = (x.detach() - z_q).square().sum() / size
        loss = loss + self.encoder_weight * ((x - z_q.detach()).square().sum() / size)
        quantized = pass_gradient(x, z_q, gradient_estimator=self.gradient_estimator)
        output = QuantizerOutput(z=x.unsqueeze(-2), z_q=z_q.unsqueeze(-2), q=index.unsqueeze(-1), loss=loss)
        return quantized.moveaxis(-1, self.dim), output

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        """Codes of the ids `q` `(..., 1)`, float32 or better, in the layout of the layer's output."""
        codes = F.embedding(self.check_ids(q)[..., 0], self.codebook())
        return (codes if q.ndim > 1 else codes.unsqueeze(0)).moveaxis(-1, self.dim)

    @torch.no_grad()
    def get_codebook(self) -> torch.Tensor:
        """All codes, `(num_codes, code_dim)`, float32 or better."""
        return self.codebook()

    @classmethod
    def card_words(cls, config: Any) -> str:
        """That the codes are mapped, and how gradients pass."""
        rotation = ", rotation trick" if config.gradient_estimator == "rotation" else ""
        return f"one code per position, frozen codes behind a learned linear map (SimVQ){rotation}"

    @classmethod
    def cited_works(cls, config: Any) -> list[str]:
        """Of SimVQ, and of the rotation trick where it is used."""
        return [SIMVQ, "oord", *(["rotation"] if config.gradient_estimator == "rotation" else [])]

    def extra_repr(self) -> str:
        return f"feature_size={self.feature_size}, num_codes={self.num_codes}, dim={self.dim}"


__all__ = ["SimVectorQuant"]
