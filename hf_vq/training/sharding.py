"""FSDP: each process holds a part of weights, gradients, moments and averages, in torch's `fully_shard` (FSDP2).

Quantizers are left replicated, as is all that learns nothing by gradients: a sharded codebook would train wrong, for
its statistics, replacements and inner steps work on whole codes.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from hf_vq.modeling.base_quantizer_vq import get_vq_layers
from hf_vq.utils.tensors import is_sharded, local


def require_shardable(args: Any) -> None:
    """Refuses what was not made for sharded weights, before anything is loaded.

    Args:
        args: The training arguments.

    Raises:
        ValueError: An older torch, or a setting that does not go with `fsdp`.
    """
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise ValueError(f"fsdp leaves quantizers whole, which needs torch 2.7 or newer; this is {torch.__version__}.")
    asked: dict[str, Any] = {
        "torch_compile": args.torch_compile,
        "mixed_precision fp16": args.mixed_precision == "fp16",
        "save_training_state": args.save_training_state,
        "monitor_steps": getattr(args, "monitor_steps", 0),
        "adversarial_weight": getattr(args, "adversarial_weight", 0),
    }
    refused = [name for name, value in asked.items() if value]
    if refused:
        raise ValueError(f"fsdp does not go with {', '.join(refused)}: leave one or the other out.")


def shard(model: nn.Module) -> None:
    """Shards a model over all processes, in place: each of its blocks, and then what is left of it.

    Its parameters become other objects, so an optimizer is made afterwards.

    Args:
        model: The same on all processes, on its device.
    """
    from torch.distributed.fsdp import fully_shard

    quantizers = [weight for layer in get_vq_layers(model) for weight in layer.parameters()]
    alone = {*quantizers, *(weight for weight in model.parameters() if not weight.requires_grad)}
    device = next(model.parameters()).device.type
    mesh = torch.distributed.init_device_mesh(device, (torch.distributed.get_world_size(),))
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        own = set(module.parameters())
        if type(module).__name__ in blocks and own - alone:
            fully_shard(module, mesh=mesh, ignored_params=alone & own)
    fully_shard(model, mesh=mesh, ignored_params=alone)


def clip_norm(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Clips the gradients of sharded and whole parameters together, and returns their norm from before; a collective.

    Gradients of whole parameters are equal on all processes.
    """
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    parts = [gradient for gradient in gradients if is_sharded([gradient])]
    rest = [gradient for gradient in gradients if not is_sharded([gradient])]
    total = sum(
        (local(part).float().square().sum() for part in parts), start=torch.zeros((), device=gradients[0].device)
    )
    torch.distributed.all_reduce(total)
    norm = sum((gradient.float().square().sum() for gradient in rest), start=total).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local(gradient).mul_(factor.to(gradient.dtype))
    return norm
