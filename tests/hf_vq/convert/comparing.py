"""Comparison of a converted tokenizer with the original."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_vq import VQModel


def randomize(model: Any) -> Any:
    """Sets weights so that every one counts, also norms and biases, and puts codes where the vectors are."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.ndim == 1 else 0.01))
            if name.startswith(("quantize.", "quantizer.", "quant_conv.", "encoder.quant_conv.")):
                nn.init.normal_(parameter, std=0.5)
    return model.eval()


def pixels(size: int = 32) -> torch.Tensor:
    """Draws two images in [-1, 1] that are not square."""
    return torch.rand(2, 3, size, size + 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def assert_same(
    model: VQModel,
    theirs: Any,
    encode: Callable[[Any, torch.Tensor], torch.Tensor] = lambda theirs, images: theirs.encode(images),
    decode: Callable[[Any, torch.Tensor], torch.Tensor] = lambda theirs, tokens: theirs.decode(tokens),
) -> None:
    """Checks that all tokens are equal, and the pixels decoded from them to 1e-5. The images use many codes.

    In float64: in float32 the rounding of a dozen layers, which depends on the number of threads, can pass 1e-5 or
    decide a near tie of two codes.
    """
    model, theirs, images = copy.deepcopy(model).double(), copy.deepcopy(theirs).double(), pixels().double()
    ours = model.encode(images).image_tokens

    assert len(ours.unique()) > 10
    assert torch.equal(ours, encode(theirs, images).reshape(ours.shape))
    expected = decode(theirs, ours)
    torch.testing.assert_close(model.decode(ours).decoded_pixel_values, expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-2
