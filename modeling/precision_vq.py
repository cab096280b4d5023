# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Full float32 in matrix products, whatever the global settings of torch allow.

torch keeps a setting for the products of each backend, one for each backend as a whole, and one for all backends. A
setting of "none" inherits that of the next larger group. Reading a setting gives what holds, not what was set, so
writing it back would turn an inherited value into one of its own, which no later setting of the group changes.

Before version 2.9 torch had a single setting for all of this, "highest", "high" (TF32) or "medium" (also bfloat16).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_BACKENDS = {"cuda": "cuda", "cpu": "mkldnn"}  # of the devices whose float32 products can be rounded
_LOW = ("tf32", "bf16")
_HAS_ONE_SETTING = not hasattr(torch._C, "_get_fp32_precision_getter")
_REDUCED_BY = {"cuda": ("high", "medium"), "cpu": ("medium",)}  # what the one setting means for a device


def at_least_float32() -> torch.dtype:
    """The dtype of what a quantizer makes, also inside a model that is made in half precision."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def is_reduced(device_type: str) -> bool:
    """Whether float32 matrix products on such a device may run in TF32 or bfloat16."""
    if _HAS_ONE_SETTING:
        return torch.get_float32_matmul_precision() in {"cuda": ("high", "medium"), "cpu": ("medium",)}.get(
            device_type, ()
        )
    backend = _BACKENDS.get(device_type)
    return backend is not None and _get(backend, "matmul") in _LOW


@torch.compiler.assume_constant_result
def is_reduced_when_traced(device_type: str) -> bool:
    """Does the same for a graph that is being traced, which keeps the answer."""
    return is_reduced(device_type)


@contextmanager
def ieee_matmul() -> Iterator[None]:
    """Computes float32 matrix products in float32: no TF32 on CUDA, no bfloat16 in oneDNN.

    All settings are afterwards as they were, and inherited ones are still inherited. Autocast is left to the caller.
    """
    if _HAS_ONE_SETTING:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
        return
    before = {
        backend: _own_setting(backend) for kind, backend in _BACKENDS.items() if is_reduced(kind)
    }  # usually empty, so usually nothing is written
    try:
        for backend in before:
            _set(backend, "matmul", "ieee")
        yield
    finally:
        for backend, setting in before.items():
            _set(backend, "matmul", setting)


def _own_setting(backend: str) -> str:
    """Returns the setting of a backend's products that `_set` restores: "none" if they inherit a low precision.

    With the larger groups at "ieee", whatever is still low is the products' own.
    """
    everything = _get("generic", "all")
    _set("generic", "all", "ieee")
    try:
        whole = _get(backend, "all")
        if whole in _LOW:
            _set(backend, "all", "ieee")
        try:
            products = _get(backend, "matmul")
        finally:
            if whole in _LOW:
                _set(backend, "all", whole)
    finally:
        _set("generic", "all", everything)
    return products if products in _LOW else "none"


# torch's Python properties write "mkldnn" as a whole to "generic", so they cannot restore it.
def _get(backend: str, operation: str) -> str:
    return torch._C._get_fp32_precision_getter(backend, operation)  # type: ignore[attr-defined]


def _set(backend: str, operation: str, precision: str) -> None:
    torch._C._set_fp32_precision_setter(backend, operation, precision)  # type: ignore[attr-defined]
