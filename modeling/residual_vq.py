# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Residual quantization: each level quantizes what the levels before left over."""

import torch
import torch.nn.functional as F

from .codebook_updates_vq import collect_vectors, finish_initialization, initialize_codes, observe_moments
from .distributed_vq import decided_by_first
from .nearest_vq import nearest_code
from .quantizer_vq import VectorQuant


class ResidualVectorQuant(VectorQuant):
    """Quantizes what the levels before left over; the output is the sum of `groups` codes.

    The commitment loss is that of the final sum. Inner steps and EMA move each level's codes towards that level's own
    vectors, the residuals.

    Args:
        groups: number of levels.
        share: one codebook for all levels; else `num_codes` are split evenly.
        quantizer_dropout: share of the training batches, in [0, 1], that use only the first levels; how many, is drawn
            evenly from 1 to `groups`, the same on all ranks. So the first levels alone become a coarser description
            (Zeghidour et al. 2021). The ids of the levels left out are -1. What they hold is neither moved nor counted
            as unused. Eval, and a frozen layer, use all levels.
        **kwargs: see `VectorQuant`.
    """

    kind = "residual"

    def __init__(
        self,
        feature_size: int,
        num_codes: int,
        groups: int = 1,
        share: bool = True,
        quantizer_dropout: float = 0.0,
        **kwargs,
    ):
        self.groups, self.share, self.quantizer_dropout = groups, share, quantizer_dropout
        super().__init__(feature_size, num_codes, **kwargs)

    @property
    def fewest_ids(self) -> int:
        """One: the first levels alone can be looked up, too."""
        return 1

    @property
    def _num_vectors(self) -> int:
        return 1

    @torch.no_grad()
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

    def _draw_levels(self, x: torch.Tensor) -> int:
        if not self.quantizer_dropout or x.is_meta:
            return self.groups

        def choose() -> torch.Tensor:
            drops = torch.rand((), device=x.device) < self.quantizer_dropout
            return torch.where(drops, torch.randint(1, self.groups + 1, (), device=x.device), self.groups)

        return int(decided_by_first(choose, like=torch.empty((), dtype=torch.long, device=x.device)))

    @torch.no_grad()
    def _assign(
        self, x: torch.Tensor, levels: int | None = None, observe: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual, residuals, found = x[:, 0], [], []
        codes = self.codebook(x.dtype)
        for level in range(self.groups if levels is None else levels):
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
        return self._read_levels(codes, index).sum(1, keepdim=True)

    def _read_levels(self, codes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Codes `(N, groups, code_dim)` of each level; zero for levels that were left out."""
        levels = F.embedding(index.clamp_min(0), codes)
        return torch.where((index >= 0)[..., None], levels, 0.0) if self.quantizer_dropout else levels

    def _distance(self, x: torch.Tensor, index: torch.Tensor, squared: torch.Tensor) -> torch.Tensor:
        levels = self._read_levels(self.codebook(x.dtype).detach(), index)
        return (x - levels.cumsum(1)).norm(dim=-1)
