# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Residual quantization without codebooks: each level refines what the levels before rounded to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .base_quantizer_vq import Quantizer
from .checks_quantizer_vq import ENTROPY, check_quantizer
from .entropy_vq import EntropyLoss
from .finite_scalar_vq import FSQ, IFSQ, FiniteScalarQuant
from .gradient_vq import pass_gradient
from .lookup_free_vq import LFQ
from .quantizer_output_vq import QuantizerOutput


class _Levels(Quantizer):
    """`groups` levels of `level_size` codes each. Ids count on from level to level, as those of separate codebooks."""

    takes_mask = True
    level_size: int

    @property
    def fewest_ids(self) -> int:
        """One: the first levels alone can be looked up, too."""
        return 1

    def _codes_of_level(self, level: int, index: torch.Tensor) -> torch.Tensor:
        """Codes `(..., code_dim)` of the ids `index` in [0, level_size)."""
        raise NotImplementedError

    def _index(self, q: torch.Tensor) -> torch.Tensor:
        """Ids within the levels.

        Raises:
            ValueError: an id is another level's.
        """
        q = self.check_ids(q)
        index = q - torch.arange(q.shape[-1], device=q.device) * self.level_size
        known = torch.compiler.is_compiling() or q.is_meta or not q.numel()
        if not known and not bool(((index >= 0) & (index < self.level_size)).all()):
            raise ValueError(
                f"the ids of level g must be in [{self.level_size} g, {self.level_size} (g + 1)), got others. The "
                "last axis holds the levels, the first one first."
            )
        return index

    def lookup(self, q: torch.Tensor) -> torch.Tensor:
        """Sums of the codes of the ids `q` `(..., 1 to groups)`, float32, in the layout of the layer's output."""
        index = self._index(q)
        codes: Any = sum(self._codes_of_level(level, each) for level, each in enumerate(index.unbind(-1)))
        return (codes if q.ndim > 1 else codes.unsqueeze(0)).moveaxis(-1, self.dim)

    def get_codebook(self) -> torch.Tensor:
        """Codes of all levels, the first level's first, `(num_codes, code_dim)`, float32."""
        every = torch.arange(self.level_size)
        return torch.cat([self._codes_of_level(level, every) for level in range(self.groups)])

    def _output(
        self, values: torch.Tensor, codes: torch.Tensor, found: list[torch.Tensor], loss: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, QuantizerOutput]:
        q = torch.stack([index + level * self.level_size for level, index in enumerate(found)], -1)
        output = QuantizerOutput(z=values.unsqueeze(-2), z_q=codes.detach().unsqueeze(-2), q=q, loss=loss)
        return pass_gradient(values, codes).moveaxis(-1, self.dim), output

    def extra_repr(self) -> str:
        return f"feature_size={self.feature_size}, num_codes={self.num_codes}, groups={self.groups}, dim={self.dim}"


class ResidualFiniteScalarQuant(_Levels):
    """Finite scalar quantization from coarse to fine.

    The first level is [`FiniteScalarQuant`]. Each further one divides the interval that a channel was rounded from
    into as many equal parts as the channel has levels. So g levels of L are as fine as one of about L^g, with g small
    ids, and the first levels alone are a coarser description.

    Args:
        feature_size: size of the quantized axis, the number of `levels`.
        num_codes: the product of `levels` times `groups`, which is the default.
        dim: the axis to quantize.
        levels: of each channel, at least 2.
        groups: residual levels.
        activation: see `FiniteScalarQuant`.

    Raises:
        ValueError: for values that make no sense, alone or together.
    """

    def __init__(
        self,
        feature_size: int | None = None,
        num_codes: int | None = None,
        dim: int = 1,
        *,
        levels: Sequence[int],
        groups: int = 1,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.levels, self.activation, self.dim, self.groups = list(levels), activation, dim, groups
        self.level_size = math.prod(self.levels)
        self.num_codes = self.level_size * groups if num_codes is None else num_codes
        self.feature_size = self.code_dim = len(self.levels) if feature_size is None else feature_size
        names = ("feature_size", "num_codes", "levels", "groups", "activation")
        check_quantizer("residual_fsq", {name: getattr(self, name) for name in names})
        object.__setattr__(self, "first", FiniteScalarQuant(levels=self.levels, dim=-1, activation=activation))

    first: FiniteScalarQuant

    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes `z`; its gradient passes the rounding straight through. There is nothing to mask in here."""
        x = z.moveaxis(self.dim, -1)
        values = self.first.unquantized(x)
        residual, total, found = values.detach(), torch.zeros_like(values), []
        for level in range(self.groups):
            low, width = self._interval(level, x)
            sizes = torch.tensor(self.levels, device=x.device)
            # What is not finite still gets an id that exists.
            digits = ((residual - low) / width * sizes).floor().nan_to_num().clamp(min=0).long().minimum(sizes - 1)
            strides = [math.prod(self.levels[:channel]) for channel in range(self.code_dim)]
            index = (digits * torch.tensor(strides, device=x.device)).sum(-1)
            code = self._codes_of_level(level, index).to(x.dtype)
            residual, total = residual - code, total + code
            found.append(index)
        return self._output(values, total, found)

    def _interval(self, level: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lower end and width of what the channels of a level are in; each is cut into as many parts as it has levels.

        The first level's parts lie around its codes.
        """
        sizes = torch.tensor(self.levels, dtype=torch.float64)
        half_widths = sizes.div(2, rounding_mode="floor")
        if level == 0:
            low, width = -(half_widths + 0.5) / half_widths, sizes / half_widths
        else:
            width = sizes ** (1 - level) / half_widths
            low = -width / 2
        return low.to(like.device, like.dtype), width.to(like.device, like.dtype)

    def _codes_of_level(self, level: int, index: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor(self.levels, device=index.device)
        strides = [math.prod(self.levels[:channel]) for channel in range(self.code_dim)]
        digits = index.unsqueeze(-1) // torch.tensor(strides, device=index.device) % sizes
        low, width = self._interval(level, torch.empty((), dtype=torch.float64, device=index.device))
        return (low + (digits + 0.5) / sizes * width).float()

    def unquantized(self, z: torch.Tensor) -> torch.Tensor:
        """The bounded channels."""
        return self.first.unquantized(z.moveaxis(self.dim, -1)).moveaxis(-1, self.dim)

    @classmethod
    def card_words(cls, config: Any) -> str:
        """The levels, and the activation where it is another one."""
        levels = " x ".join(map(str, config.levels))
        activation = ", sigmoid activation (iFSQ)" if config.level_activation == "sigmoid" else ""
        return (
            f"residual finite scalar quantization, {config.num_groups} times {levels} levels per position{activation}"
        )

    @classmethod
    def card_loss(cls, config: Any) -> str:
        """None: there are no codes to commit to."""
        return ""

    @classmethod
    def cited_works(cls, config: Any) -> list[str]:
        """Of FSQ, of residual quantization, and of iFSQ where its activation is used."""
        return [FSQ, "residual", *([IFSQ] if config.level_activation == "sigmoid" else [])]


class ResidualLookupFreeQuant(_Levels):
    """Lookup-free quantization from coarse to fine: level g adds the signs of what is left over, times 2^-g.

    The training loss is `mean((z - sg z_q)^2)` and the mean over the levels of the entropies of [`LookupFreeQuant`],
    each of what is left over, divided by the size of the level's codes.

    Args:
        feature_size: size of the quantized axis, the bits of a level's token.
        num_codes: `groups * 2^bits`, which is the default.
        dim: the axis to quantize.
        groups: residual levels.
        entropy_weight: see `LookupFreeQuant`.
        entropy_diversity: see `LookupFreeQuant`.
        entropy_temperature: see `LookupFreeQuant`.

    Raises:
        ValueError: for values that make no sense, alone or together.
    """

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
        self.feature_size = self.code_dim = feature_size
        self.dim, self.groups, self.level_size = dim, groups, 2**feature_size
        self.num_codes = self.level_size * groups if num_codes is None else num_codes
        shape = {"feature_size": feature_size, "num_codes": self.num_codes, "groups": groups}
        entropy = (entropy_weight, entropy_diversity, entropy_temperature)
        check_quantizer("residual_lfq", shape | dict(zip(ENTROPY, entropy, strict=True)))
        self.entropy_losses = [EntropyLoss(*entropy) for _ in range(groups)]

    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, QuantizerOutput]:
        """Quantizes `z`; its gradient passes the signs straight through."""
        x = z.moveaxis(self.dim, -1).contiguous()
        residual, total, found = x, torch.zeros_like(x), []
        kept = x.new_ones(x.shape[:-1]) if mask is None else mask.to(x.dtype)
        entropies = x.new_zeros(())
        for level, entropy_loss in enumerate(self.entropy_losses):
            size = 2.0**-level
            positive = residual.detach() > 0
            code = torch.where(positive, size, -size).to(x.dtype)
            found.append((positive.long() << torch.arange(self.code_dim, device=x.device)).sum(-1))
            if self.training and entropy_loss.weight > 0:
                scaled = residual.flatten(0, -2) / size
                entropies = entropies + entropy_loss.of_signs(scaled, 1.0, kept.flatten()) / self.groups
            residual, total = residual - code, total + code
        loss = ((x - total).square().sum(-1) * kept).sum() / (kept.sum() * self.code_dim).clamp_min(1)
        return self._output(x, total, found, loss + entropies)

    def _codes_of_level(self, level: int, index: torch.Tensor) -> torch.Tensor:
        bits = index.unsqueeze(-1) >> torch.arange(self.code_dim, device=index.device) & 1
        return torch.where(bits > 0, 2.0**-level, -(2.0**-level))

    @classmethod
    def card_words(cls, config: Any) -> str:
        """The number of bits, and the entropies' weight."""
        bits = (config.num_codes // config.num_groups).bit_length() - 1
        entropy = f", entropy loss of weight {config.entropy_weight:g}" if config.entropy_weight else ""
        return f"residual lookup-free quantization, {config.num_groups} times {bits} bits per position{entropy}"

    @classmethod
    def cited_works(cls, config: Any) -> list[str]:
        """Of LFQ and of residual quantization."""
        return [LFQ, "residual"]


__all__ = ["ResidualFiniteScalarQuant", "ResidualLookupFreeQuant"]
