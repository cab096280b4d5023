# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The transformer of a [`MaskGitModel`]. It maps tokens, some of them hidden, to the states that the head reads.

Its pre-norm layers consist of attention with normalized queries and keys, and of SwiGLU. Positions are learned, or
rotary in two dimensions. The class modulates the layers (adaLN-zero, arXiv 2212.09748) or is a token before the image.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention_vq import eager_attention_forward
from .configuration_maskgit import MaskGitConfig

# The wavelengths of the rotations run from 2 pi to 2 pi * 100 cells, because grids have 8 to 64 rows and not thousands
# of words.
_ROTARY_BASE = 100.0


def _norm(config: MaskGitConfig, width: int, affine: bool = True) -> nn.Module:
    kind = nn.RMSNorm if config.norm_type == "rmsnorm" else nn.LayerNorm
    return kind(width, eps=config.norm_eps, elementwise_affine=affine)


def rotary_embedding(
    height: int, width: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cosines and sines that rotate the first half of a head's channels by row, the second half by column.

    Returns:
        `tuple`: Two tensors (1 + height * width, head_dim). The first position is the class or register token, which
        is not rotated.
    """
    exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device=device) / (head_dim // 2)
    frequencies = _ROTARY_BASE**-exponents
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], 1)
    angles = F.pad(angles, (0, 0, 1, 0)).repeat(1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cosines, sines = rotary
    first, second = states.chunk(2, -1)
    return states * cosines + torch.cat([-second, first], -1) * sines


class MaskGitAttention(nn.Module):
    """Self-attention over all tokens, with normalized queries and keys."""

    def __init__(self, config: MaskGitConfig) -> None:
        super().__init__()
        self.config = config
        # transformers' attention functions read these four attributes.
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.num_key_value_groups = 1
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        normed = self.head_dim if config.qk_norm == "head" else config.hidden_size
        self.q_norm = _norm(config, normed)
        self.k_norm = _norm(config, normed)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Keeps the shape (batch, positions, hidden_size). Returns the attention weights, too, if there are any."""
        batch, positions, width = hidden_states.shape
        if self.config.qk_norm == "head":
            qkv = self.qkv(hidden_states).view(batch, positions, 3, -1, self.head_dim)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            query, key = self.q_norm(query), self.k_norm(key)
        else:
            query, key, value = self.qkv(hidden_states).chunk(3, -1)
            query, key, value = (
                states.view(batch, positions, -1, self.head_dim).transpose(1, 2)
                for states in (self.q_norm(query), self.k_norm(key), value)
            )
        if rotary is not None:
            query, key = _rotate(query, rotary), _rotate(key, rotary)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            None,
            dropout=self.config.dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=False,
            **kwargs,
        )
        return self.proj(output.reshape(batch, positions, width)), weights


class MaskGitMLP(nn.Module):
    """SwiGLU. It keeps the shape (batch, positions, hidden_size)."""

    def __init__(self, config: MaskGitConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Keeps the shape."""
        gate, up = self.gate_up(hidden_states).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class MaskGitModulation(nn.Linear):
    """Maps the class embedding to shift, scale and gate of both sub-layers, or to shift and scale of the last norm.

    It has a class of its own because it starts at zero.
    """

    def __init__(self, config: MaskGitConfig, parts: int = 6) -> None:
        super().__init__(config.hidden_size, parts * config.hidden_size)

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        """Maps (batch, hidden_size) to (batch, 1, parts * hidden_size)."""
        return super().forward(F.silu(condition)).unsqueeze(1)


class MaskGitLayer(GradientCheckpointingLayer):
    """Attention and SwiGLU, each after a norm and added to its input. With adaLN-zero the class modulates both."""

    def __init__(self, config: MaskGitConfig) -> None:
        super().__init__()
        has_modulation = config.class_conditioning == "adaln_zero"
        self.norm1 = _norm(config, config.hidden_size, affine=not has_modulation)
        self.attn = MaskGitAttention(config)
        self.norm2 = _norm(config, config.hidden_size, affine=not has_modulation)
        self.mlp = MaskGitMLP(config)
        self.modulation = MaskGitModulation(config) if has_modulation else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        condition: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Maps (batch, positions, hidden_size) to the same shape. The class embeddings are (batch, hidden_size)."""
        if self.modulation is None:
            hidden_states = hidden_states + self.dropout(self.attn(self.norm1(hidden_states), rotary, **kwargs)[0])
            return hidden_states + self.dropout(self.mlp(self.norm2(hidden_states)))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, -1)
        output, _ = self.attn(self.norm1(hidden_states) * (1 + scale1) + shift1, rotary, **kwargs)
        hidden_states = hidden_states + gate1 * self.dropout(output)
        output = self.mlp(self.norm2(hidden_states) * (1 + scale2) + shift2)
        return hidden_states + gate2 * self.dropout(output)


class MaskGitTransformer(nn.Module):
    """Everything between tokens and head. All steps of sampling use the same shapes, which helps compilation."""

    def __init__(self, config: MaskGitConfig) -> None:
        super().__init__()
        self.config = config
        width, groups = config.hidden_size, config.num_groups
        self.embed_tokens = nn.Embedding(groups * config.codebook_size, width)
        self.mask_embedding = nn.Parameter(torch.empty(groups, width))
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)  # the last one is the null class
        # A token before the image's tokens. Rotations alone tell positions apart only relative to this token: on a
        # canvas that is all hidden, there is nothing else to see.
        self.register = nn.Parameter(torch.empty(width)) if config.class_conditioning == "adaln_zero" else None
        rows, columns = config.grid_size
        self.position_embedding = (
            nn.Parameter(torch.empty(rows * columns, width)) if config.position_type == "learned" else None
        )
        self.layers = nn.ModuleList(MaskGitLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = _norm(config, width, affine=not config.modulates_last_norm)
        self.modulation = MaskGitModulation(config, parts=2) if config.modulates_last_norm else None

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, class_labels: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Computes hidden states for the head.

        Args:
            tokens: int64 (batch, h, w, groups). Ids count from 0 in each group. Hidden ones are ignored.
            mask: Boolean (batch, h, w, groups), True where a token is hidden.
            class_labels: int64 (batch,). `num_classes` is the null class.

        Returns:
            `torch.FloatTensor`: (batch, h * w, hidden_size).
        """
        batch, height, width, groups = tokens.shape
        offsets = torch.arange(groups, device=tokens.device) * self.config.codebook_size
        embedded = self.embed_tokens(tokens.masked_fill(mask, 0) + offsets)
        hidden_states = torch.where(mask.unsqueeze(-1), self.mask_embedding, embedded).sum(3).flatten(1, 2)
        if self.position_embedding is not None:
            hidden_states = hidden_states + self.position_embedding
        condition = self.class_embedding(class_labels)
        first = condition if self.register is None else self.register.expand(batch, -1)
        hidden_states = torch.cat([first.unsqueeze(1), hidden_states], 1)
        rotary = None
        if self.config.position_type == "rotary":
            head_dim = self.config.hidden_size // self.config.num_attention_heads
            rotary = rotary_embedding(height, width, head_dim, tokens.device, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, condition, rotary, **kwargs)
        hidden_states = self.norm(hidden_states)[:, 1:]
        if self.modulation is not None:
            shift, scale = self.modulation(condition).chunk(2, -1)
            hidden_states = hidden_states * (1 + scale) + shift
        return hidden_states


__all__ = ["MaskGitAttention", "MaskGitLayer", "MaskGitModulation", "MaskGitTransformer", "rotary_embedding"]
