# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Gradient estimators: how the gradient of the quantized vectors reaches the encoder's vectors and the codes."""

import torch
import torch.nn.functional as F

# Standard deviation of DiVeQ's noise, that of vector-quantize-pytorch.
_NOISE = 5e-3**0.5
# Most times by which the rotation may lengthen a vector and its gradient.
_MAX_RATIO = 1e4


def pass_gradient(
    x: torch.Tensor,
    z_q: torch.Tensor,
    sync_nu: float = 0.0,
    gradient_estimator: str = "ste",
    training: bool = False,
) -> torch.Tensor:
    """Returns the codes' values with a gradient to the encoder, and with `sync_nu` of it to the codes.

    "diveq" and "nsvq" pass a gradient to the codes as well, whatever `sync_nu`. In training they return not the code
    but a point as far from the vector as the code is: near the code, and in a random direction.

    Args:
        x: The encoder's vectors, `(..., dim)`.
        z_q: Their codes, of the same shape.
        sync_nu: Share of the task's gradient that the codes receive (synchronized commitment, Huh et al. 2023).
        gradient_estimator: "ste" for straight through, "rotation" (Fifty et al. 2024), "diveq" (Vali et al. 2025) or
            "nsvq" (Vali and Bäckström 2022).
        training: whether "diveq" and "nsvq" draw their noise; without it they are "ste".

    Returns:
        A tensor with the same bits as `z_q`, but for the noise.
    """
    if gradient_estimator in ("diveq", "nsvq") and training:
        return _at_distance(x, z_q, around_code=gradient_estimator == "diveq")
    if not torch.is_grad_enabled():
        return z_q
    # Written as value + (t - t), which keeps the bits of the code. z + sg(z_q - z) would not.
    values = z_q.detach()
    carrier = _rotate(x, values) if gradient_estimator == "rotation" else x
    quantized = values + (carrier - carrier.detach())
    if sync_nu > 0:
        quantized = quantized + sync_nu * (z_q - values)
    return quantized


def _at_distance(x: torch.Tensor, z_q: torch.Tensor, around_code: bool) -> torch.Tensor:
    """Returns `x + |z_q - x| sg[u]` with a unit vector u: of the error and some noise (DiVeQ), or of noise (NSVQ).

    The gradient of the distance pulls vector and code together, so there is no need of a commitment loss.
    """
    error = z_q - x
    with torch.no_grad():
        noise = torch.randn_like(error)
        direction = F.normalize(error + _NOISE * noise if around_code else noise, dim=-1)
    # The root of zero has no gradient: a vector that is its code stays there, and passes straight through.
    squared = error.square().sum(-1, keepdim=True)
    apart = squared > 0
    distance = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
    return x + distance * direction


def _rotate(x: torch.Tensor, z_q: torch.Tensor) -> torch.Tensor:
    """Returns `sg[(|q| / |e|) R] e`, where the rotation R takes e to q (Fifty et al. 2024, eq. 4).

    Two reflections make up the rotation. A vector has no direction to rotate from if it is zero, is too short or too
    long for the square of its norm to be a number of its dtype, or is more than 10,000 times shorter than its code.
    Such a vector passes straight through. While tokenizers trained from fresh weights the ratio stayed below 10.
    """
    with torch.no_grad():
        x_square, q_square = x.square().sum(-1, keepdim=True), z_q.square().sum(-1, keepdim=True)
        longest = _MAX_RATIO**2 * x_square
        rotates = (x_square > torch.finfo(x.dtype).tiny) & x_square.isfinite() & (q_square <= longest)
        tiny = torch.finfo(x.dtype).tiny
        x_norm = x.norm(dim=-1, keepdim=True).clamp_min(tiny)
        q_norm = z_q.norm(dim=-1, keepdim=True)
        x_unit, q_unit = x / x_norm, z_q / q_norm.clamp_min(tiny)
        middle = F.normalize(x_unit + q_unit, dim=-1)
        # These factors make the expression below the identity.
        ratio = torch.where(rotates, q_norm / x_norm, 1.0)
        x_unit, q_unit, middle = (torch.where(rotates, factor, 0.0) for factor in (x_unit, q_unit, middle))
    rotated = x - 2 * (x * middle).sum(-1, keepdim=True) * middle + 2 * (x * x_unit).sum(-1, keepdim=True) * q_unit
    return rotated * ratio
