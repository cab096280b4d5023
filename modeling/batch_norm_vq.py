# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Batch norm for networks around a quantizer: it copes with recomputation, single vectors and several processes."""

import torch
import torch.nn.functional as F
from torch import nn

from .distributed_vq import is_distributed, sum_over_ranks
from .precision_vq import at_least_float32


def in_backward() -> bool:
    """Whether autograd is running a backward pass. A training forward is then a recomputation."""
    return torch._C._current_graph_task_id() != -1


class _CountsOnce(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose running statistics count each batch once, even if activation checkpointing recomputes it.

    A batch of one vector has no moments, so the running statistics normalize it. A batch whose moments are not finite
    changes no statistics.
    """

    gradient_checkpointing = False  # `gradient_checkpointing_enable()` of transformers sets it

    def _recomputes(self) -> bool:
        """Whether this forward is a recomputation. It breaks a compiled graph, so there it is asked only if needed."""
        asks = self.gradient_checkpointing or not torch.compiler.is_compiling()
        return asks and in_backward()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Keeps the shape, (batch, num_features, ...)."""
        mean, var = self.running_mean, self.running_var
        alone = input.numel() == input.shape[1]
        if self.training and (alone or self._recomputes()):
            assert mean is not None and var is not None
            # Copies, because a recomputation must save as many tensors for the backward pass as the first run did.
            return F.batch_norm(
                input, mean.clone(), var.clone(), self.weight, self.bias, training=not alone, eps=self.eps
            )
        if not self.training:
            return super().forward(input)
        before = {name: buffer.clone() for name, buffer in self.named_buffers()}
        output = super().forward(input)
        # `.data`, because autograd has saved these buffers. The backward pass reads only the batch's own moments.
        finite = torch.stack([buffer.data.isfinite().all() for buffer in self.buffers()]).all()
        for name, buffer in self.named_buffers():
            buffer.data.copy_(torch.where(finite, buffer.data, before[name]))
        return output


class BatchNorm2d(_CountsOnce, nn.BatchNorm2d):
    """Batch norm of feature maps (batch, num_features, height, width)."""


class BatchNorm1d(_CountsOnce, nn.BatchNorm1d):
    """Batch norm of vectors (batch, num_features, length). Ranks can average its running statistics."""

    def __init__(self, num_features: int):
        super().__init__(num_features, dtype=at_least_float32())
        # Not needed, and it would differ after an empty batch. No buffer at all, since accelerate stops at empty ones.
        del self.num_batches_tracked
        self.num_batches_tracked = None

    def average_over_ranks(self) -> None:
        """Averages the running statistics over all ranks. Every rank must call it, even with an empty batch."""
        if is_distributed():
            # `.data`, because autograd has saved these buffers. Its batch norm reads only the batch's own moments.
            for buffer in (self.running_mean, self.running_var):
                assert buffer is not None
                sum_over_ranks(buffer.data)
                buffer.data.div_(torch.distributed.get_world_size())
