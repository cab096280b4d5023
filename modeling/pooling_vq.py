# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Pooling of whole vectors, weighted by their norms. A pooled vector is (nearly) one of the vectors of its window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class _VecPool2d(nn.Module):
    """Weighted sum over windows of `(B, C, H, W)`. The weights come from the vectors' norms and carry no gradient.

    Padded places count as zero vectors.
    """

    def __init__(self, kernel_size: int = 3, stride: int = 2, padding: int = 2, dilation: int = 1):
        super().__init__()
        self.unfold = nn.Unfold(kernel_size, dilation=dilation, padding=padding, stride=stride)

    def weights(self, norms: torch.Tensor) -> torch.Tensor:
        """Turns norms `(B, kernel_size^2, L)` into weights of the same shape that sum to 1 along axis 1."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to `(B, C, H', W')`, with H' and W' as in `torch.nn.MaxPool2d`."""
        with torch.no_grad():
            weights = self.weights(self.unfold(x.norm(dim=1, keepdim=True)))
        windows = self.unfold(x).unflatten(1, (x.shape[1], -1))
        pooled = (windows * weights[:, None]).sum(2)
        return pooled.unflatten(2, (self._out_size(x.shape[2]), self._out_size(x.shape[3])))

    def _out_size(self, size: int) -> int:
        kernel, stride, padding, dilation = (
            int(value)  # type: ignore[arg-type]
            for value in (self.unfold.kernel_size, self.unfold.stride, self.unfold.padding, self.unfold.dilation)
        )
        return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


class MaxVecPool2d(_VecPool2d):
    """Takes the vector with the largest norm of each window. Of equal norms it takes the first."""

    def weights(self, norms: torch.Tensor) -> torch.Tensor:
        return F.one_hot(norms.argmax(1), norms.shape[1]).transpose(1, 2).to(norms.dtype)


class SoftMaxVecPool2d(_VecPool2d):
    """Takes the mean of each window, weighted by the softmax of the norms."""

    def weights(self, norms: torch.Tensor) -> torch.Tensor:
        return norms.softmax(1)
