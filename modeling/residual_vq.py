# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Residual quantization: each level quantizes what the levels before left over."""

import torch
import torch.nn.functional as F

from .codebook_updates_vq import collect_vectors, finish_initialization, initialize_codes, observe_moments
from .nearest_vq import nearest_code
from .quantizer_vq import VectorQuant


class ResidualVectorQuant(VectorQuant):
    """Quantizes what the levels before left over; the output is the sum of `groups` codes.

    The commitment loss is that of the final sum. Inner steps and EMA move each level's codes towards that level's own
    vectors, the residuals.

    Args:
        groups: number of levels.
        share: one codebook for all levels; else `num_codes` are split evenly.
        **kwargs: see `VectorQuant`.
    """

    kind = "residual"

    def __init__(self, feature_size: int, num_codes: int, groups: int = 1, share: bool = True, **kwargs):
        self.groups, self.share = groups, share
        super().__init__(feature_size, num_codes, **kwargs)

    @property
    def _num_vectors(self) -> int:
        return 1

    def _initialize(self, x: torch.Tensor) -> None:
        # A shared codebook starts as one share of codes for each level: z alone would leave the later levels none.
        # It takes more vectors than a level has codes, or each would be its own code and leave no residual.
        residual = collect_vectors(self.codebook, 0, 1, x[:, 0])
        num_collected = len(residual)
        for level in range(self.groups):
            codes = initialize_codes(self.codebook, level, self.groups, residual)
            residual = residual - codes[nearest_code(residual, codes)]
        finish_initialization(self.codebook, num_collected, self.num_codes)

    def _vectors_of_books(self, x: torch.Tensor) -> list[torch.Tensor]:
        residuals = self._assign(x)[0]
        return [residuals.flatten(0, 1)] if self.share else list(residuals.unbind(1))

    @torch.no_grad()
    def _assign(self, x: torch.Tensor, observe: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        residual, residuals, found = x[:, 0], [], []
        codes = self.codebook(x.dtype)
        for level in range(self.groups):
            start, stop = self.codebook.part(0 if self.share else level, self.codebook.num_books)
            if observe:
                observe_moments(self.codebook, level, residual)
                codes = self.codebook(x.dtype)
            index = nearest_code(residual, codes[start:stop]) + start
            residuals.append(residual)
            found.append(index)
            residual = residual - codes[index]
        return torch.stack(residuals, 1), torch.stack(found, 1)

    def _read(self, codes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return F.embedding(index, codes).sum(1, keepdim=True)

    def _distance(self, x: torch.Tensor, index: torch.Tensor, squared: torch.Tensor) -> torch.Tensor:
        levels = F.embedding(index, self.codebook(x.dtype).detach())
        return (x - levels.cumsum(1)).norm(dim=-1)
