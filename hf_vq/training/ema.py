"""A running average of the weights that knows which code rows were written anew."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hf_vq.modeling.base_quantizer_vq import get_vq_layers


class WeightEMA:
    """Keeps `average = decay * average + (1 - decay) * weight` in a copy of the model.

    Buffers and parameters that are not trained by gradients (an EMA codebook, clocks, batch-norm statistics) are taken
    over as they are: averaging them a second time, or averaging a counter, makes no sense.

    Args:
        model: The model to follow; its copy is `self.module`, in eval mode.
        decay: The decay, reached gradually so that early averages do not cling to the random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module, rewritten: dict[int, Tensor] | None = None) -> None:
        """Takes one step towards the model's weights.

        Args:
            model: The model that was trained.
            rewritten: For the `id` of a parameter, the rows that were freshly initialized or replaced since the last
                update. They are copied: an average with the vector that the row held before is no code of anything.
        """
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for average, weight in zip(self.module.parameters(), model.parameters(), strict=True):
            if not weight.requires_grad or not weight.is_floating_point():
                average.copy_(weight)
                continue
            rows = (rewritten or {}).get(id(weight))
            if rows is not None:
                average.copy_(torch.where(_as_rows(rows, weight), weight, average))
            averages.append(average)
            weights.append(weight.detach())
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - decay)
        self.copy_buffers(model)
        if rewritten:
            self._take_over_codes(model, rewritten)

    def _take_over_codes(self, model: nn.Module, rewritten: dict[int, Tensor]) -> None:
        """Makes rewritten codes the average's own as they are used, behind its affine map, which is another."""
        for average, layer in zip(get_vq_layers(self.module), get_vq_layers(model), strict=True):
            theirs = {weight: rewritten[id(weight)] for weight in layer.code_parameters() if id(weight) in rewritten}
            if theirs:
                average.take_over(layer, theirs)

    @torch.no_grad()
    def copy_buffers(self, model: nn.Module) -> None:
        """Takes over the model's buffers as they are."""
        for average, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)


def _as_rows(rows: Tensor, weight: Tensor) -> Tensor:
    return rows.to(weight.device).view(-1, *[1] * (weight.ndim - 1))
