# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What the methods of `VQModel` return."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class VQEncoderOutput(ModelOutput):
    r"""What [`VQModel.encode`] returns.

    Args:
        image_tokens: int64. Ids of the codes in [0, num_codes): (batch, h, w), or (batch, h, w, groups) with more than
            one group. h and w are the image's sides divided by the downsample factor. `None` while quantization is off
            (`no_vq`).
        quantized_last_hidden_state: The codes, (batch, embed_dim, h, w). Their gradient passes to `last_hidden_state`.
        last_hidden_state: The vectors before quantization, (batch, embed_dim, h, w).
        commitment_loss: Scalar. It is 0 under `no_vq`.
        perplexity: Scalar in [1, num_codes]. Exponential of the ids' entropy.
        usage: Scalar in [0, 1]. Share of the codes that the batch uses.
        quantization_error: Scalar without gradient. Mean squared difference, per dimension, of the (normalized)
            vectors and their codes.
        replaced: Boolean (num_codes,). Codes that were initialized or replaced at the start of this training forward.
            `None` if there were none.
        hidden_states: With `output_hidden_states=True`: the input of the first residual block and the output of each.
        attentions: With `output_attentions=True` and eager attention: weights (batch, heads, positions, positions).
    """

    image_tokens: torch.Tensor | None = None
    quantized_last_hidden_state: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    usage: torch.Tensor | None = None
    quantization_error: torch.Tensor | None = None
    replaced: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class VQDecoderOutput(ModelOutput):
    r"""What [`VQModel.decode`] returns.

    Args:
        decoded_pixel_values: (batch, num_channels, height, width), roughly in `pixel_range`.
    """

    decoded_pixel_values: torch.Tensor | None = None


@dataclass
class VQModelOutput(ModelOutput):
    r"""What [`VQModel.forward`] returns.

    Args:
        loss: Scalar. `reconstruction_loss + commitment_weight * commitment_loss`. `None` with `return_loss=False`.
        reconstruction_loss: Scalar. Mean absolute or squared error of the pixels on the scale [0, 1]. `None` with
            `return_loss=False`.
        commitment_loss: Scalar. It is 0 under `no_vq`.
        decoded_pixel_values: (batch, num_channels, height, width), roughly in `pixel_range`.
        image_tokens, perplexity, usage, quantization_error, replaced, hidden_states, attentions:
            As in [`VQEncoderOutput`]. The last two cover the decoder, too.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    decoded_pixel_values: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    usage: torch.Tensor | None = None
    quantization_error: torch.Tensor | None = None
    replaced: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


__all__ = ["VQDecoderOutput", "VQEncoderOutput", "VQModelOutput"]
