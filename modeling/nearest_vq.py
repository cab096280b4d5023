# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Exact nearest-code search that never holds more than a chunk of the N x K scores.

It differs from `torch.cdist(z, c).argmin()` in four ways:

- It centers vectors and codes on the codebook's mean, so the expansion |z|^2 - 2 z.c + |c|^2 does not cancel.
- It leaves out |z|^2, which is the same for all codes. A score is |c|^2 / 2 - z.c, one matrix product with a bias.
- It takes the minimum over blocks of codes first, and then inside the winning block. A row-wise argmin over all codes
  costs more than the product itself.
- Its products never run in TF32 or bfloat16, whatever the global settings say.

On CPUs, long work with few dimensions goes to a compiled loop, `fused_search_vq`, which finds the same indices.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from .fused_search_vq import fused_index, is_fused
from .precision_vq import ieee_matmul, is_reduced_when_traced

# Before torch 2.7 there is no such function, and our models cannot be exported. `bool()` is False.
is_exporting = getattr(torch.compiler, "is_exporting", bool)

_BLOCK = 32
_MAX_ROWS = 1024
# Number of scores held at once. 16 MiB stay in a CPU's last-level cache; an accelerator wants fewer, larger launches.
_CPU_SCORES = 2**22
_DEVICE_SCORES = 2**24


@torch.no_grad()
def nearest_code(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Finds the index of the nearest code of each vector by Euclidean distance. Ties go to the lowest index.

    Args:
        vectors: `(N, D)`, float32 or float64. N may be 0.
        codes: `(K, D)`, same dtype and device. K is at least 1.

    Returns:
        int64 `(N,)` in `[0, K)`. Let `mu` be the mean of the codes and `u` the dtype's unit roundoff. Then the squared
        distance to the returned code exceeds the least one by at most
        `4 (D + 2) u max_k |c_k - mu| (|z - mu| + |c_k - mu|)`, computed from the centered inputs. This is twice the
        rounding bound of a dot product, because two scores are compared. Exact ties, such as duplicated codes, go to
        the lowest index. The search needs extra memory for copies of the inputs and at most 64 MiB of float32 scores.
        What `torch.export` or `torch.jit.trace` makes of it takes any N and holds all `N x K` scores.
    """
    num_vectors, num_codes = vectors.shape[0], codes.shape[0]
    mean = codes.mean(0)
    vectors = vectors - mean
    codes = codes - mean
    half_norms = codes.square().sum(1) / 2
    padding = -num_codes % _BLOCK
    if padding:  # whole blocks; the padding never wins, because its scores are infinite
        codes = F.pad(codes, (0, 0, 0, padding))
        half_norms = F.pad(half_norms, (0, padding), value=torch.inf)
    if is_exporting() or torch.jit.is_tracing():
        # A graph for any number of vectors has neither a number of chunks nor a case for none.
        index = _search_traced(vectors, codes, half_norms)
        return index.clamp_max(num_codes - 1) if padding else index
    if num_vectors == 0:
        return torch.empty(0, dtype=torch.long, device=vectors.device)

    compiling = torch.compiler.is_compiling()
    budget = _CPU_SCORES if vectors.device.type == "cpu" and not compiling else _DEVICE_SCORES
    rows = max(1, budget // codes.shape[0])
    if vectors.device.type == "cpu":
        rows = min(rows, _MAX_ROWS)
    chunks = range(0, num_vectors, rows)
    if compiling:
        found = [_search_traced(vectors[i : i + rows], codes, half_norms) for i in chunks]
    else:
        scores = vectors.new_empty(min(rows, num_vectors), codes.shape[0])
        search = partial(_search, codes=codes, half_norms=half_norms, buffer=scores)
        whole = num_vectors - num_vectors % rows
        found = []
        with ieee_matmul():
            if whole and is_fused(vectors[:whole], codes):
                fused = fused_index(vectors[:whole], codes, half_norms, rows, search)
                if fused is not None:
                    found, chunks = [fused], range(whole, num_vectors, rows)
            found += [search(vectors[i : i + rows]) for i in chunks]
    index = found[0] if len(found) == 1 else torch.cat(found)
    # Only a NaN or infinite vector can end in the padding. It gets an index that exists, too.
    return index.clamp_max(num_codes - 1) if padding else index


def _search(
    vectors: torch.Tensor, codes: torch.Tensor, half_norms: torch.Tensor, buffer: torch.Tensor
) -> torch.Tensor:
    scores = torch.addmm(half_norms, vectors, codes.T, alpha=-1, out=buffer[: vectors.shape[0]])
    return _blockwise_argmin(scores)


def _search_traced(vectors: torch.Tensor, codes: torch.Tensor, half_norms: torch.Tensor) -> torch.Tensor:
    """Does the same as `_search` for `torch.compile` and `torch.export`, which cannot switch the precision.

    What torch allows while it traces decides about the graph. `torch.compile` traces again when the setting of CUDA's
    products changes, but not when that of a larger group does.
    """
    if not is_reduced_when_traced(vectors.device.type):
        scores = torch.addmm(half_norms, vectors, codes.T, alpha=-1)
    elif vectors.device.type == "cuda":
        scores = half_norms - (vectors[:, None] * codes[None]).sum(-1)  # the compiler fuses it, nothing is stored
    else:
        scores = torch.addmm(half_norms.double(), vectors.double(), codes.double().T, alpha=-1)
    return _blockwise_argmin(scores)


def _blockwise_argmin(scores: torch.Tensor) -> torch.Tensor:
    blocks = scores.unflatten(1, (-1, _BLOCK))
    block = blocks.amin(-1).argmin(1)
    within = blocks.gather(1, block[:, None, None].expand(-1, 1, _BLOCK)).squeeze(1).argmin(1)
    return block * _BLOCK + within
