"""Tensors of which each process holds a part, and whole ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether one of some tensors is a part of a sharded one."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: Any) -> Any:
    """Plain containers with whole tensors on the CPU in place of sharded ones; a collective if there are any.

    What stands in several places, as tied weights in `state_dict(keep_vars=True)`, is one tensor there, too.
    """
    seen: dict[int, Tensor] = {}

    def gathered(part: Any) -> Any:
        if isinstance(part, DTensor):
            if id(part) not in seen:
                seen[id(part)] = part.full_tensor().detach().cpu()
            return seen[id(part)]
        if isinstance(part, Tensor):
            return part.detach()
        if isinstance(part, dict):
            return {name: gathered(inner) for name, inner in part.items()}
        return [gathered(inner) for inner in part] if isinstance(part, list) else part

    return gathered(value)


def part_of(value: Any, like: Any) -> Any:
    """The part of a whole tensor for a place where `like` stands; the tensor itself where that is not sharded."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
