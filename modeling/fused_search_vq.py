# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The search among many codes of few dimensions as one compiled loop, which stores no scores.

A product with few dimensions costs less than to write its result, so `torch.compile` makes one loop of both. It runs
twice over the codes of a vector: for the least score, and for the codes whose score is that close to it that rounding
could decide. If there is one such code, it is what the other search finds: that one's choice is always among them,
for both searches keep the same bound of rounding. The few other vectors go to the other search, in chunks of its
shape. So the indices are equal to the bit, and it does not matter when a process compiles.

Compiling takes seconds, so it waits until the other search has done that much work for one size of codebook.
`HF_VQ_COMPILE_SEARCH=0` in the environment turns it off.
"""

from __future__ import annotations

import os
import types
from collections import Counter
from collections.abc import Callable

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Measured on two cores: with more dimensions the product pays for its scores, with fewer codes there is little to win.
_MAX_DIM = 12
_CODES = range(256, 2**20 + 1)
# Products of numbers before a size of codebook is compiled: about 20 s of the other search on two cores.
_WORK = 2**38
_ONE = 2.0**20  # a code's index plus this: a sum of one such number tells the index, a sum of more is twice as large

# What older versions compile was never tried.
_IS_TRIED = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 8)

_work: Counter[tuple[int, int]] = Counter()
_kernels: dict[tuple[int, int, int], Callable[..., torch.Tensor]] = {}
_has_failed = False


def is_fused(vectors: torch.Tensor, codes: torch.Tensor) -> bool:
    """Whether to search by `fused_index`. Counts the work of those who ask.

    Args:
        vectors: `(N, D)`.
        codes: `(K, D)`.
    """
    if vectors.dtype != torch.float32 or vectors.device.type != "cpu" or _has_failed or not _IS_TRIED:
        return False
    if vectors.shape[1] > _MAX_DIM or codes.shape[0] not in _CODES:
        return False
    if os.environ.get("HF_VQ_COMPILE_SEARCH", "1") == "0" or _is_watched(vectors):
        return False
    size = (vectors.shape[1], codes.shape[0])
    _work[size] += vectors.shape[0] * size[0] * size[1]
    return _work[size] > _WORK


def _is_watched(vectors: torch.Tensor) -> bool:
    """Whether the operations are not only run: fake tensors, `vmap`, counters of operations."""
    return (
        type(vectors) is not torch.Tensor
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def fused_index(
    vectors: torch.Tensor,
    codes: torch.Tensor,
    half_norms: torch.Tensor,
    rows: int,
    search: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor | None:
    """Finds the indices that `search` finds, or None if torch cannot compile, after a warning.

    Args:
        vectors: float32 `(N, D)`, centered, N a multiple of `rows`.
        codes: float32 `(K, D)`, centered.
        half_norms: float32 `(K,)`, half the squared norms, infinite for codes that never win.
        rows: How many vectors `search` takes at once.
        search: The search by stored scores, `(rows, D)` to int64 `(rows,)`.

    Returns:
        int64 `(N,)`.
    """
    global _has_failed
    key = (*codes.T.shape, torch.get_num_threads())  # the number of threads is a part of the compiled code
    is_new = key not in _kernels
    if is_new:
        _kernels[key] = _new_kernel(*key[:2])
    try:
        index, is_sure = _run(_kernels[key], vectors.contiguous(), codes, half_norms)
        if is_new and bool((is_sure[:rows] & (index[:rows] != search(vectors[:rows]))).any()):
            raise RuntimeError("the compiled search gave other indices")
    except Exception as error:  # every compiler and every version of torch raises its own
        _has_failed = True
        reason = str(error).strip().split("\n")[0]
        logger.warning(
            "The search for the nearest code goes on without torch.compile, which failed: %s. It finds the same "
            "codes, but slower. Install a C++ compiler, or set HF_VQ_COMPILE_SEARCH=0 to leave out this attempt.",
            reason,
        )
        return None
    unsure = (~is_sure).nonzero().squeeze(1)
    for few in unsure.split(rows) if len(unsure) else ():
        # A chunk of the usual shape, because a product of few rows may be rounded in another way.
        index[few] = search(vectors[few[torch.arange(rows) % len(few)]])[: len(few)]
    return index


def _run(
    kernel: Callable[..., torch.Tensor], vectors: torch.Tensor, codes: torch.Tensor, half_norms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices, and whether rounding cannot have decided about them."""
    largest = codes.square().sum(1).amax() / 2  # if this is infinite, no vector is sure
    # A score is a sum of D + 1 terms, so its error stays under (D + 1) u (|c|^2 / 2 + |z| |c|), in whatever order it
    # is summed. Two scores of each search are compared, so 4 of these are enough. Tiny numbers lose more.
    scale = largest + vectors.norm(dim=1) * (2 * largest).sqrt()
    limits = torch.finfo(torch.float32)
    margin = (vectors.shape[1] + 2) * (5 * limits.eps / 2 * scale + 16 * limits.tiny)
    labels = torch.arange(codes.shape[0], dtype=torch.float32, device="cpu") + _ONE
    by_dimension = codes.T.contiguous()
    torch._dynamo.mark_dynamic(vectors, 0)
    torch._dynamo.mark_dynamic(margin, 0)
    with torch.autocast("cpu", enabled=False):
        found = kernel(vectors, by_dimension, half_norms, margin, labels)
    return (found - _ONE).long(), (found >= _ONE) & (found < 2 * _ONE)


def _new_kernel(dim: int, num_codes: int) -> Callable[..., torch.Tensor]:
    # torch counts the compilations of a code object, and makes sizes that change dynamic. So each size gets its own.
    code = _sum_of_labels.__code__.replace(co_name=f"_sum_of_labels_{dim}_{num_codes}")
    return torch.compile(types.FunctionType(code, globals()), fullgraph=True, dynamic=False)


def _sum_of_labels(
    vectors: torch.Tensor,
    codes: torch.Tensor,
    half_norms: torch.Tensor,
    margin: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Sums the labels of the codes `(D, K)` whose score is within the margin `(N,)` of the least, for each vector."""
    if not torch.compiler.is_compiling():
        raise RuntimeError("torch.compile is turned off")  # this would store all scores
    scores = half_norms
    for number, coordinates in enumerate(codes):
        scores = scores - vectors[:, number, None] * coordinates
    is_near = scores <= (scores.amin(1) + margin)[:, None]
    return torch.where(is_near, labels, 0.0).sum(1)
