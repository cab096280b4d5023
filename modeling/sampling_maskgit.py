# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The mathematics of drawing tokens: probabilities, draws, guidance and the Halton order. Pure functions."""

import math
from functools import lru_cache
from typing import Literal

import torch

GuidanceSchedule = Literal["constant", "linear", "power_cosine"]


def guidance_scales(
    scale: torch.Tensor, num_steps: int, schedule: GuidanceSchedule = "constant", power: float = 3.0
) -> torch.Tensor:
    """Returns the factor s of `u + s (c - u)` in each step.

    It is `1 + (scale - 1) f(step / num_steps)`, with steps counted from 0. f(r) is 1 for "constant" and r for
    "linear". For "power_cosine" it is `(1 - cos(pi r^power)) / 2`, as in MaskBit.

    Args:
        scale: Guidance scale of each image, (batch,).
        num_steps: Number of steps, at least 1.
        schedule: `"constant"`, `"linear"` or `"power_cosine"`. The function f.
        power: Power of `"power_cosine"`, above 0.

    Returns:
        `torch.FloatTensor`: (num_steps, batch).

    Raises:
        ValueError: If the schedule is unknown.
    """
    progress = torch.arange(num_steps, dtype=scale.dtype) / num_steps
    if schedule == "constant":
        weight = torch.ones_like(progress)
    elif schedule == "linear":
        weight = progress
    elif schedule == "power_cosine":
        weight = (1 - torch.cos(math.pi * progress**power)) / 2
    else:
        raise ValueError(f'`guidance_schedule` must be "constant", "linear" or "power_cosine", got {schedule!r}.')
    return 1 + (scale - 1) * weight[:, None]


def sampling_probabilities(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> torch.Tensor:
    """Computes the softmax of `logits / temperature` and keeps only the likeliest codes.

    Args:
        logits: (..., codes).
        temperature: Above 0. Less than 1 sharpens the distribution.
        top_k: Keeps this many codes, and those as likely as the last of them.
        top_p: Of these, keeps the likeliest until their probabilities reach `top_p`.

    Returns:
        `torch.FloatTensor`: Probabilities (..., codes) in float32. They sum to 1.
    """
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, codes = probabilities.sort(-1, descending=True)
        # The likeliest code stays, because nothing comes before it.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, codes, ordered)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def draw_tokens(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draws one code from each distribution by the inverse of its cumulative sum.

    This takes one random number for each distribution, instead of one for each code.

    Args:
        probabilities: (..., codes), at least 0. Codes of probability 0 are never drawn.
        uniform: (...), in [0, 1).

    Returns:
        `torch.LongTensor`: Indices of codes, (...).
    """
    cumulative = probabilities.cumsum(-1)
    # The value stays below the total: `uniform` is at most 1 - 2^-24, so no product rounds up to the total.
    value = uniform.unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, value, right=True).squeeze(-1)


def gumbel(uniform: torch.Tensor) -> torch.Tensor:
    """Turns numbers in [0, 1) into Gumbel noise."""
    exponential = -torch.log(uniform.clamp(min=1e-20))
    return -torch.log(exponential.clamp(min=1e-20))


@lru_cache(maxsize=64)
def halton_order(height: int, width: int) -> tuple[int, ...]:
    """Lists the cells of a grid in the order in which the Halton sequence first meets them.

    Point i = 1, 2, ... lies in row `floor(height * phi_2(i))` and column `floor(width * phi_3(i))`, where phi_b is the
    radical inverse in base b (Halton-MaskGIT, arXiv 2503.17076). The sequence goes on until it has met all cells. The
    computation uses whole numbers only, because rounding would move points that lie on a border.

    Args:
        height, width: Size of the grid, at least 1.

    Returns:
        `tuple[int, ...]`: The numbers row * width + column, each once.
    """
    count = 2 * height * width
    while True:
        index = torch.arange(1, count + 1)
        cells = _scaled_radical_inverse(index, 2, height) * width + _scaled_radical_inverse(index, 3, width)
        order = tuple(dict.fromkeys(cells.tolist()))
        if len(order) == height * width:
            return order
        count *= 2


def _scaled_radical_inverse(index: torch.Tensor, base: int, size: int) -> torch.Tensor:
    """Computes `floor(size * phi_base(index))`. phi mirrors the digits of the index at the point."""
    numerator, denominator, rest = torch.zeros_like(index), 1, index
    while rest.any():
        numerator = numerator * base + rest % base
        denominator *= base
        rest = rest // base
    return size * numerator // denominator


def halton_ranks(mask: torch.Tensor) -> torch.Tensor:
    """Ranks the hidden tokens of each image: cells in Halton order, one group after the other.

    Args:
        mask: Boolean (batch, h, w, groups), True where a token is hidden.

    Returns:
        `torch.LongTensor`: Same shape. 0, 1, ... for the hidden tokens, larger numbers for the others.
    """
    batch, height, width, groups = mask.shape
    order = torch.tensor(halton_order(height, width), device=mask.device)
    turns = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=mask.device))
    turns = turns[:, None] + torch.arange(groups, device=mask.device) * len(order)
    turns = turns.flatten().expand(batch, -1).masked_fill(~mask.flatten(1), groups * len(order))
    return ranks(turns).view(mask.shape)


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks the numbers of each row in ascending order, from 0. Of equal numbers the left one comes first."""
    return values.argsort(dim=1, stable=True).argsort(1)


__all__ = [
    "GuidanceSchedule",
    "draw_tokens",
    "guidance_scales",
    "gumbel",
    "halton_order",
    "halton_ranks",
    "ranks",
    "sampling_probabilities",
]
