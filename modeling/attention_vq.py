# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Attention that the autoencoder and the transformer share."""

import torch
import torch.nn.functional as F
from torch import nn


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes attention in plain operations. This is the only implementation that returns its weights.

    Args:
        module: The calling module. transformers' attention interface passes it; only its `training` flag is read.
        query, key, value: (batch, heads, positions, head_dim).
        attention_mask: Added to the scores. It must broadcast to (batch, heads, positions, positions).
        scaling: Factor of the scores.
        dropout: Dropout rate of the weights.

    Returns:
        `tuple`: The output (batch, positions, heads, head_dim) and the weights (batch, heads, positions, positions).
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


__all__ = ["eager_attention_forward"]
