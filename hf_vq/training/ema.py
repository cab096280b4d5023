"""A running average of the weights that knows which code rows were written anew."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hf_vq.modeling.base_quantizer_vq import get_vq_layers
from hf_vq.training.sharding import shard
from hf_vq.utils.tensors import local


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

    def shard(self, model: nn.Module) -> None:
        """Shards the averages as `model`, which is about to be sharded, before any update."""
        for average, weight in zip(self.module.parameters(), model.parameters(), strict=True):
            average.requires_grad_(weight.requires_grad)  # which says what is sharded
        shard(self.module)
        self.module.requires_grad_(False)

    @torch.no_grad()
    def update(
        self, model: nn.Module, rewritten: dict[int, Tensor] | None = None, masked: Tensor | None = None
    ) -> None:
        """Takes one step towards the model's weights.

        Args:
            model: The model that was trained.
            rewritten: For the `id` of a parameter, the rows that were freshly initialized or replaced since the last
                update. They are copied: an average with the vector that the row held before is no code of anything.
            masked: On the device, bool `()`; where it is true, averages stay as they are. What is taken over and not
                averaged is the caller's to put back, see `take_over`.
        """
        if masked is not None:
            rewritten = {name: rows & ~masked for name, rows in (rewritten or {}).items()}
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        shares: dict[torch.dtype, Any] = {}  # the weights' shares of the average, on the device
        if masked is not None:
            for dtype in {weight.dtype for weight in model.parameters() if _is_averaged(weight)}:
                share = torch.full((), 1 - decay, dtype=dtype, device=masked.device)
                shares[dtype] = share.masked_fill_(masked, 0)
        for average, weight in zip(self.module.parameters(), model.parameters(), strict=True):
            if not _is_averaged(weight):
                continue
            rows = (rewritten or {}).get(id(weight))
            if rows is not None:
                average.copy_(torch.where(_as_rows(rows, weight), weight, average))
            local(average).lerp_(local(weight.detach()), shares.get(weight.dtype, 1 - decay))
        self.take_over(model)
        if rewritten:
            self._take_over_codes(model, rewritten)

    def _take_over_codes(self, model: nn.Module, rewritten: dict[int, Tensor]) -> None:
        """Makes rewritten codes the average's own as they are used, behind its affine map, which is another."""
        for average, layer in zip(get_vq_layers(self.module), get_vq_layers(model), strict=True):
            theirs = {weight: rewritten[id(weight)] for weight in layer.code_parameters() if id(weight) in rewritten}
            if theirs:
                average.take_over(layer, theirs)

    @torch.no_grad()
    def take_over(self, model: nn.Module) -> None:
        """Takes over all that is not averaged, as it is."""
        for average, weight in zip(self.module.parameters(), model.parameters(), strict=True):
            if not _is_averaged(weight):
                average.copy_(weight)
        self.copy_buffers(model)

    @torch.no_grad()
    def copy_buffers(self, model: nn.Module) -> None:
        """Takes over the model's buffers as they are."""
        for average, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)


def _is_averaged(weight: nn.Parameter) -> bool:
    return weight.requires_grad and weight.is_floating_point()


def _as_rows(rows: Tensor, weight: Tensor) -> Tensor:
    return rows.to(weight.device).view(-1, *[1] * (weight.ndim - 1))
