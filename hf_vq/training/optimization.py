"""Parameter groups, learning-rate schedules, and the optimizer's memory of codes that were replaced."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from hf_vq.modeling.base_quantizer_vq import Quantizer
from hf_vq.training.base_arguments import BaseTrainingArguments


def parameter_groups(
    model: nn.Module, weight_decay: float, undecayed: Iterable[nn.Parameter] = ()
) -> list[dict[str, object]]:
    """Two groups: weights of two and more axes with weight decay; codebooks, norms, biases and the rest without.

    The rest are parameters that are not called weights: class tokens, positions, tables of relative positions.

    Args:
        model: The model to train.
        weight_decay: Decay of the first group.
        undecayed: Parameters for the second group whatever their shape. Decay would pull codes that no vector
            chooses towards the origin.
    """
    exempt = {id(parameter) for parameter in undecayed}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]
    decayed = [
        parameter
        for parameter in weights
        if parameter.requires_grad and parameter.ndim >= 2 and id(parameter) not in exempt
    ]
    chosen = {id(parameter) for parameter in decayed}
    others = [parameter for parameter in trained if id(parameter) not in chosen]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_schedule(optimizer: torch.optim.Optimizer, args: BaseTrainingArguments) -> LambdaLR:
    """A schedule that multiplies the optimizer's learning rates by `learning_rate_factor`."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, args))


def learning_rate_factor(step: int, args: BaseTrainingArguments) -> float:
    """The learning rate of optimizer step `step` (from 0), as a fraction of the peak.

    A pure function, so that a resumed run needs nothing but its step. `onecycle` has the shape of PyTorch's
    `OneCycleLR` and leaves the betas alone.
    """
    if args.lr_scheduler == "onecycle":
        rise = max(1, (args.warmup_steps or round(0.3 * args.max_steps)) - 1)
        if step <= rise:
            return _cosine_between(1 / 25, 1.0, step / rise)
        return _cosine_between(1.0, 1e-4 / 25, (step - rise) / max(1, args.max_steps - 1 - rise))
    if step < args.warmup_steps:
        return (step + 1) / args.warmup_steps
    if args.lr_scheduler == "cosine":
        return _cosine_between(1.0, 0.0, (step - args.warmup_steps) / max(1, args.max_steps - args.warmup_steps))
    return 1.0


def _cosine_between(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def rewritten_rows(layers: Iterable[Quantizer]) -> dict[nn.Parameter, Tensor]:
    """The codes, as masks over rows, that the last forward of some quantizers initialized or replaced."""
    return {weight: rows for layer in layers for weight, rows in layer.rewritten_rows().items()}


@torch.no_grad()
def forget_gradients(rewritten: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    """Drops gradients that earlier forwards of the same step collected for rows which hold another vector now."""
    for parameter, rows in rewritten:
        if parameter.grad is not None:
            parameter.grad[rows] = 0


@torch.no_grad()
def forget_moments(optimizer: torch.optim.Optimizer, rewritten: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    """Clears an optimizer's moments of rows that were rewritten: they describe the vectors that stood there before."""
    for parameter, rows in rewritten:
        for value in optimizer.state.get(parameter, {}).values():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                value[rows] = 0
