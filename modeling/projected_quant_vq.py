# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""A quantizer between two projections, for codes of another size than the vectors."""

from __future__ import annotations

import torch
from torch import nn

from .base_quantizer_vq import Quantizer
from .quantizer_output_vq import QuantizerOutput


class ProjectedQuant(nn.Module):
    """Vectors are projected to the size of the codes, quantized there, and projected back.

    It is no `Quantizer` itself: trainers, `no_vq` and monitors find the layer inside.

    Args:
        quantizer: the layer. Its `dim` is the axis that is projected.
        project_in: a module on the last axis, to `quantizer.feature_size`, such as `nn.Linear`.
        project_out: the way back.
    """

    def __init__(self, quantizer: Quantizer, project_in: nn.Module, project_out: nn.Module) -> None:
        super().__init__()
        self.quantizer, self.project_in, self.project_out = quantizer, project_in, project_out

    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes `z`. Arguments and results are those of a `Quantizer`; `out.z` and `out.z_q` are projected."""
        dim = self.quantizer.dim
        if mask is not None:
            z = torch.where(mask.unsqueeze(dim), z, 0.0)
        z_q, output = self.quantizer(self.project_in(z.moveaxis(dim, -1)).moveaxis(-1, dim), mask)
        quantized = self._out(z_q)
        return quantized if mask is None else torch.where(mask.unsqueeze(dim), quantized, 0.0), output

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        """Projected vectors of the ids `q` `(..., groups)`, in the layout of the output."""
        return self._out(self.quantizer.lookup(q))

    def _out(self, z_q: torch.Tensor) -> torch.Tensor:
        dim = self.quantizer.dim
        return self.project_out(z_q.moveaxis(dim, -1)).moveaxis(-1, dim)


__all__ = ["ProjectedQuant"]
