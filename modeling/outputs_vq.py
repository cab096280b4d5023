# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What the methods of models return: short to print, and known to type checkers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from PIL import Image
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

Method = TypeVar("Method", bound=Callable[..., Any])


def captures_outputs(method: Method) -> Method:
    """Lets a method take `output_hidden_states`, `output_attentions` and `return_dict`.

    These are transformers' decorators, but type checkers still see the method's own type.
    """
    return cast(Method, merge_with_config_defaults(capture_outputs(tie_last_hidden_states=False)(method)))


def returns_tuples(method: Method) -> Method:
    """Lets a method take `return_dict`: transformers' decorator, but type checkers still see the method's own type."""
    return cast(Method, can_return_tuple(method))


class ShortOutput(ModelOutput):
    """A `ModelOutput` that prints the kind, the shape and the range of its tensors in place of their values.

    Subclasses are a `@dataclass(repr=False)`.
    """

    def __repr__(self) -> str:
        lines = [f"    {name}: {in_short(value)}\n" for name, value in self.items()]
        return f"{type(self).__name__}(\n{''.join(lines)})"


def in_short(value: Any) -> str:
    """What a value is, on one line: a number as it is, a tensor by its dtype, shape, range and device."""
    if isinstance(value, torch.Tensor):
        return _tensor_in_short(value.detach())
    if isinstance(value, (list, tuple)) and value:
        rest = f" and {len(value) - 1} more" if len(value) > 1 else ""
        return in_short(value[0]) + rest
    if isinstance(value, Image.Image):
        return f"image of {value.width} x {value.height} pixels"
    return repr(value)


def _tensor_in_short(tensor: torch.Tensor) -> str:
    kind = f"{tensor.dtype}".removeprefix("torch.")
    place = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    if tensor.is_meta or not tensor.numel() or tensor.is_complex():
        return f"{kind} {tuple(tensor.shape)}{place}"
    if tensor.ndim == 0:
        return f"{tensor.item():.6g}{place}"
    if tensor.dtype == torch.bool:
        return f"{kind} {tuple(tensor.shape)}, {int(tensor.sum()):,} of {tensor.numel():,} True{place}"
    low, high = (end.item() for end in tensor.aminmax())
    return f"{kind} {tuple(tensor.shape)}, {low:.6g} to {high:.6g}{place}"


@dataclass(repr=False)
class VQEncoderOutput(ShortOutput):
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

    # What is there always, or always but under `no_vq`, has no None in its type: every use would have to ask for it.
    # ModelOutput wants None as the default.
    image_tokens: torch.Tensor = None  # type: ignore[assignment]
    quantized_last_hidden_state: torch.Tensor = None  # type: ignore[assignment]
    last_hidden_state: torch.Tensor = None  # type: ignore[assignment]
    commitment_loss: torch.Tensor = None  # type: ignore[assignment]
    perplexity: torch.Tensor | None = None
    usage: torch.Tensor | None = None
    quantization_error: torch.Tensor | None = None
    replaced: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass(repr=False)
class VQDecoderOutput(ShortOutput):
    r"""What [`VQModel.decode`] returns.

    Args:
        decoded_pixel_values: (batch, num_channels, height, width), roughly in `pixel_range`.
    """

    decoded_pixel_values: torch.Tensor = None  # type: ignore[assignment]


@dataclass(repr=False)
class VQModelOutput(ShortOutput):
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
    commitment_loss: torch.Tensor = None  # type: ignore[assignment]
    decoded_pixel_values: torch.Tensor = None  # type: ignore[assignment]
    image_tokens: torch.Tensor = None  # type: ignore[assignment]
    perplexity: torch.Tensor | None = None
    usage: torch.Tensor | None = None
    quantization_error: torch.Tensor | None = None
    replaced: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


__all__ = [
    "ShortOutput",
    "VQDecoderOutput",
    "VQEncoderOutput",
    "VQModelOutput",
    "captures_outputs",
    "in_short",
    "returns_tuples",
]
