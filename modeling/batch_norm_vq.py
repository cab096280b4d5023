# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Batch norm for networks around a quantizer: recomputation, batches of one vector, several processes."""

import torch
import torch.nn.functional as F
from torch import nn

from .distributed_vq import is_distributed, sum_over_ranks


def in_backward() -> bool:
    """Whether autograd is running a backward pass, so that a forward in training mode is a recomputation."""
    return torch._C._current_graph_task_id() != -1


class _CountsOnce(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose running statistics count a batch once, also when activation checkpointing recomputes it.

    A batch of one vector, which has no moments, is normalised by the running statistics.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Keeps the shape, (batch, num_features, ...)."""
        mean, var = self.running_mean, self.running_var
        alone = input.numel() == input.shape[1]
        if self.training and (alone or in_backward()):
            assert mean is not None and var is not None
            # Copies, for a recomputation has to save as many tensors for its backward pass as the first run did.
            return F.batch_norm(
                input, mean.clone(), var.clone(), self.weight, self.bias, training=not alone, eps=self.eps
            )
        return super().forward(input)


class BatchNorm2d(_CountsOnce, nn.BatchNorm2d):
    """Of feature maps, (batch, num_features, height, width)."""


class BatchNorm1d(_CountsOnce, nn.BatchNorm1d):
    """Of vectors, (batch, num_features, length), with running statistics that ranks can share."""

    def __init__(self, num_features: int):
        super().__init__(num_features)
        self.register_buffer("num_batches_tracked", None)  # not needed, and ranks with empty batches would differ

    def average_over_ranks(self) -> None:
        """Makes the running statistics those of all ranks; to be called by each of them, also with an empty batch."""
        if is_distributed():
            # `.data`: autograd has saved these buffers, but its batch norm reads only the batch's own moments.
            for buffer in (self.running_mean, self.running_var):
                assert buffer is not None
                sum_over_ranks(buffer.data)
                buffer.data.div_(torch.distributed.get_world_size())
