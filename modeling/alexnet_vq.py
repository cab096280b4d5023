# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""An AlexNet for small images: five convolutions and two fully connected layers.

The widths (64, 192, 384, 256, 256 times `base_channels / 64`) and the pooling are those of Krizhevsky's one-tower
network. Four things differ from it:

- The first convolution is 5 x 5 with stride 2 instead of 11 x 11 with stride 4.
- Pooling windows do not overlap.
- Batch norm replaces local response norm.
- The fully connected layers are 1,024 wide instead of 4,096.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BackboneOutput

from .batch_norm_vq import BatchNorm2d
from .configuration_vq_classifier import VQImageClassificationConfig


class AlexNetConvLayer(nn.Module):
    """A convolution, batch norm, ReLU, and in some layers max pooling."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, pool: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = BatchNorm2d(out_channels)
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, in_channels, h, w) to (batch, out_channels, h', w')."""
        return self.pool(F.relu(self.norm(self.conv(x))))


class AlexNetLinearLayer(nn.Module):
    """Dropout, a linear map, ReLU."""

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Flattens (batch, ...) to in_features and maps it to (batch, out_features)."""
        return F.relu(self.linear(self.dropout(x.flatten(1))))


class AlexNet(nn.Module):
    """The network without its last layer, with the interface of transformers' backbones.

    Args:
        config ([`VQImageClassificationConfig`]): Sets the widths, the channels of the images, and the dropout.
    """

    def __init__(self, config: VQImageClassificationConfig) -> None:
        super().__init__()
        width = config.base_channels
        self.channels = [16 * width]
        self.layers = nn.ModuleList(
            [
                AlexNetConvLayer(config.num_channels, width, 5, 2, nn.MaxPool2d(2)),
                AlexNetConvLayer(width, 3 * width, 5, 1, nn.MaxPool2d(2)),
                AlexNetConvLayer(3 * width, 6 * width, 3, 1, nn.Identity()),
                AlexNetConvLayer(6 * width, 4 * width, 3, 1, nn.Identity()),
                AlexNetConvLayer(4 * width, 4 * width, 3, 1, nn.AdaptiveMaxPool2d(2)),
                AlexNetLinearLayer(4 * 4 * width, 16 * width, config.dropout),
                AlexNetLinearLayer(16 * width, 16 * width, config.dropout),
            ]
        )

    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = False, **kwargs: Any
    ) -> BackboneOutput:
        """Maps images to features.

        Args:
            pixel_values: Images (batch, num_channels, height, width) with sides of at least 8.
            output_hidden_states: Whether to return `hidden_states`.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`]: `feature_maps` holds the features (batch, channels).
            `hidden_states` holds the output of each layer, if it was asked for.
        """
        hidden_states, states = [], pixel_values
        for layer in self.layers:
            states = layer(states)
            hidden_states.append(states)
        return BackboneOutput(
            feature_maps=(states,), hidden_states=tuple(hidden_states) if output_hidden_states else None
        )


__all__ = ["AlexNet", "AlexNetConvLayer", "AlexNetLinearLayer"]
