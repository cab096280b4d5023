# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Gradient accumulation: the micro batches of an optimizer step are one batch for a codebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .base_quantizer_vq import get_vq_layers


@contextmanager
def micro_batch(model: nn.Module, number: int, count: int) -> Iterator[None]:
    """Within the context, a training forward is micro batch `number` (from 0) of `count` in one optimizer step.

    The quantizer layers keep their vectors until the last micro batch, whose forward updates the codebook once, with
    the vectors of all of them. So clocks count optimizer steps, and initialization, replacement, inner steps and
    averages are those of one large batch. The earlier micro batches read the codes of the step before.

    The vectors take `count` times the memory of a layer's input. Perplexity and usage of the last forward are those of
    the whole step. Outside of such a context every forward is a step of its own.

        for number, batch in enumerate(batches):
            with micro_batch(model, number, len(batches)):
                (model(**batch).loss / len(batches)).backward()
        optimizer.step()

    Args:
        model: A model with quantizer layers.
        number: The place of the micro batch in its step, from 0.
        count: Micro batches of the step.

    Raises:
        ValueError: `number` is not in [0, count).
    """
    if not 0 <= number < count:
        raise ValueError(f"expected a micro batch number in [0, {count}), got {number}")
    layers = get_vq_layers(model)
    before = [layer.micro_batch for layer in layers]
    try:
        for layer in layers:
            layer.micro_batch = (number, count)
        yield
    finally:
        for layer, place in zip(layers, before, strict=True):
            layer.micro_batch = place
