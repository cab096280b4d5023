# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Which tokens are hidden: the schedules, random masks for training, and counts for sampling. Pure functions."""

import math
from functools import lru_cache
from typing import Literal

import torch

MaskSchedule = Literal["arccos", "cosine", "linear", "square"]
MASK_SCHEDULES = ("arccos", "cosine", "linear", "square")


def mask_ratio(progress: torch.Tensor, schedule: MaskSchedule = "arccos") -> torch.Tensor:
    """Returns the share of tokens that is hidden. It falls from 1 to 0 as `progress` goes from 0 to 1.

    Training draws `progress` uniformly. Sampling uses (step + 1) / steps. With r for `progress` the curves are:

    - "arccos": arccos(r) * 2 / pi, as in MaskBit, TiTok and Halton-MaskGIT
    - "cosine": cos(r * pi / 2), as in MaskGIT (arXiv 2202.04200)
    - "linear": 1 - r
    - "square": 1 - r^2

    Args:
        progress: Any shape, values in [0, 1].
        schedule: `"arccos"`, `"cosine"`, `"linear"` or `"square"`. The curve.

    Returns:
        `torch.FloatTensor`: Same shape as `progress`, values in [0, 1].

    Raises:
        ValueError: If the schedule is unknown.
    """
    if schedule == "arccos":
        return torch.acos(progress) * (2 / math.pi)
    if schedule == "cosine":
        return torch.cos(progress * (math.pi / 2))
    if schedule == "linear":
        return 1 - progress
    if schedule == "square":
        return 1 - progress.square()
    raise ValueError(f"There is no mask schedule {schedule!r}. Choose among {list(MASK_SCHEDULES)}.")


def draw_mask(
    shape: tuple[int, ...],
    ratio: torch.Tensor | float,
    count: Literal["exact", "bernoulli"] = "exact",
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Draws a random mask. Every image has at least one hidden token.

    Args:
        shape: Shape of the tokens, (batch, ...).
        ratio: Share to hide, in [0, 1]. One number for all images, or (batch,).
        count: `"exact"` or `"bernoulli"`. `"exact"` hides exactly that share, rounded to whole tokens. `"bernoulli"`
            hides each token with that probability.
        generator: Source of the randomness.
        device: Device of the mask. The generator may live elsewhere.

    Returns:
        `torch.BoolTensor`: Mask of the given shape, True where a token is hidden.

    Raises:
        ValueError: If `count` is unknown.
    """
    noise = draw_uniform((shape[0], math.prod(shape[1:])), generator, device)
    ratios = torch.as_tensor(ratio, dtype=noise.dtype, device=noise.device).expand(shape[0]).unsqueeze(1)
    if count == "exact":
        mask = noise.argsort(1).argsort(1) < (ratios * noise.shape[1]).round().clamp(min=1)
    elif count == "bernoulli":
        mask = noise <= torch.maximum(ratios, noise.amin(1, keepdim=True))
    else:
        raise ValueError(f'`count` must be "exact" or "bernoulli", got {count!r}.')
    return mask.view(shape)


def draw_uniform(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str | None
) -> torch.Tensor:
    """Draws numbers in [0, 1) where the generator lives, so a CPU generator gives the same on every device."""
    source = device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=source).to(device)


@lru_cache(maxsize=1024)
def masked_counts(num_tokens: int, num_steps: int, schedule: MaskSchedule = "arccos") -> tuple[int, ...]:
    """Counts how many tokens are still hidden after each step of sampling.

    The count is `floor(num_tokens * mask_ratio((step + 1) / num_steps))`, but every step reveals at least one token as
    long as there are any. With fewer tokens than steps, the last steps have nothing to do.

    Args:
        num_tokens: Hidden tokens at the start, at least 0.
        num_steps: Number of steps, at least 1.
        schedule: As in [`mask_ratio`].

    Returns:
        `tuple[int, ...]`: `num_steps` numbers. They fall strictly until they reach 0, and the last one is 0.
    """
    progress = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    counts, left = [], num_tokens
    for step, ratio in enumerate(mask_ratio(progress, schedule).tolist()):
        wanted = math.floor(num_tokens * ratio + 1e-9)  # 1 - 0.9 falls short of 0.1
        left = max(min(max(wanted, num_steps - 1 - step), left - 1), 0)
        counts.append(left)
    return tuple(counts)


__all__ = ["MASK_SCHEDULES", "MaskSchedule", "draw_mask", "draw_uniform", "mask_ratio", "masked_counts"]
