# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Tokens in any form to grids: tensors, arrays, nested lists, a pipeline's results, flat sequences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch


def to_grids(
    image_tokens: Any, groups: int, usual: tuple[int, int], is_fixed: bool
) -> tuple[list[torch.Tensor], bool]:
    """Converts tokens to int64 grids (h, w), or (h, w, groups) with more than one group.

    Args:
        image_tokens: One grid or many. Many are a list, an iterator, or a batch with one more axis. A grid is a
            tensor, an array, nested lists, a dictionary with the key `"image_tokens"`, or a flat sequence of a usual
            grid: (h * w,), with more than one group also (h * w, groups), row after row.
        groups: Tokens at each cell.
        usual: Rows and columns of a usual grid.
        is_fixed: Whether images of only that size are made into tokens. Then a grid of another size has to come in a
            list, because it could as well be a batch of sequences of another length.

    Returns:
        The grids, and whether there was a single one and no list or batch.

    Raises:
        ValueError: If these are no integers, or have a shape that is none of these.
    """
    tokens = list(image_tokens) if isinstance(image_tokens, Iterator) else image_tokens
    rank = 2 if groups == 1 else 3
    length = usual[0] * usual[1]
    flat: list[tuple[int, ...]] = [(length,)] if groups == 1 else [(length, groups), (length * groups,)]
    shape = _shape(tokens, rank)
    if shape in flat:
        return [_to_usual(tokens, flat, usual, groups, "The sequence of tokens")], True
    if isinstance(tokens, Mapping) or (len(shape) == rank and shape[:2] == usual):
        return [_to_grid(tokens, rank, "The token grid")], True
    if len(shape) > 1 and shape[1:] in flat:
        sequences = enumerate(tokens)
        return [_to_usual(each, flat, usual, groups, f"Token sequence {i}") for i, each in sequences], False
    if len(shape) == rank + 1 or (isinstance(tokens, (list, tuple)) and not tokens):
        return [_to_grid(each, rank, f"Token grid {position}") for position, each in enumerate(tokens)], False
    if len(shape) == rank:
        grid = _to_grid(tokens, rank, "The token grid")
        if not is_fixed:
            return [grid], True
        raise ValueError(
            f"`image_tokens` of the shape {tuple(grid.shape)} are neither a grid of this pipeline, {usual[0]} x "
            f"{usual[1]}, nor flat sequences of {length * groups} tokens. Pass a grid of another size in a list."
        )
    expected = "(h, w)" if groups == 1 else f"(h, w, {groups})"
    raise ValueError(
        f"`image_tokens` must be a grid {expected}, or a list or a batch of grids, got {type(tokens).__name__} "
        f"with {len(shape)} axes. Flat sequences must have {length * groups} tokens, for grids of {usual[0]} x "
        f"{usual[1]}; reshape others."
    )


def usual_grid(image_processor: Any, config: Any) -> tuple[tuple[int, int], bool]:
    """Rows and columns of the grids that a pipeline makes, and whether all of them have this size.

    Args:
        image_processor: [`VQImageProcessor`] or any other with the usual fields of transformers.
        config: [`VQConfig`] of the model.
    """
    for wanted, name in (("do_center_crop", "crop_size"), ("do_resize", "size")):
        size = dict(getattr(image_processor, name, None) or {}) if getattr(image_processor, wanted, False) else {}
        if size.get("height") and size.get("width"):
            return (size["height"] // config.downsample_factor, size["width"] // config.downsample_factor), True
    side = config.image_size // config.downsample_factor
    return (side, side), False


def group_by_shape(tensors: Sequence[torch.Tensor | None]) -> list[list[int]]:
    """Groups the positions of tensors that can be stacked. It leaves out `None`."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, tensor in enumerate(tensors):
        if tensor is not None:
            groups.setdefault(tuple(tensor.shape), []).append(position)
    return list(groups.values())


def _shape(tokens: Any, rank: int) -> tuple[int, ...]:
    """The shape of nested lists or arrays, by the first of each. A result of the pipeline counts as a grid."""
    if isinstance(tokens, Mapping):
        return (0,) * rank
    if isinstance(tokens, (np.ndarray, torch.Tensor)):
        return tuple(tokens.shape)
    if isinstance(tokens, (list, tuple)):
        return (len(tokens), *(_shape(tokens[0], rank) if tokens else ()))
    return ()


def _to_usual(
    tokens: Any, flat: list[tuple[int, ...]], usual: tuple[int, int], groups: int, name: str
) -> torch.Tensor:
    """Converts a flat sequence to a usual grid."""
    sequence = _to_integers(tokens, name)
    if tuple(sequence.shape) not in flat:
        raise ValueError(f"{name} must have the shape {flat[0]}, got {tuple(sequence.shape)}.")
    return sequence.reshape(usual if groups == 1 else (*usual, groups))


def _to_grid(tokens: Any, rank: int, name: str) -> torch.Tensor:
    """Converts tokens to one int64 grid."""
    if isinstance(tokens, Mapping):
        if "image_tokens" not in tokens:
            reason = tokens.get("error", f"it has the keys {list(tokens)}")
            raise ValueError(f"{name} has no tokens to decode: {reason}. Leave it out of the list.")
        tokens = tokens["image_tokens"]
    grid = _to_integers(tokens, name)
    if grid.ndim != rank:
        raise ValueError(f"{name} must have {rank} axes, got the shape {tuple(grid.shape)}.")
    return grid


def _to_integers(tokens: Any, name: str) -> torch.Tensor:
    try:
        integers = tokens if isinstance(tokens, torch.Tensor) else torch.from_numpy(np.array(tokens))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is no grid of integers ({error}). Pass a tensor, an array, or nested lists of equal length."
        ) from error
    if integers.is_floating_point() or integers.is_complex() or integers.dtype == torch.bool:
        raise ValueError(f"{name} must hold integers, got {integers.dtype}.")
    return integers.long()


__all__ = ["group_by_shape", "to_grids", "usual_grid"]
