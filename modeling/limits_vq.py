# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The most that a configuration may ask for, so that a wrong number is a message and not a machine without memory."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

MAX_SIDE = 2**13
"""Most pixels along a side of an image."""

MAX_WEIGHT = 2**31
"""Most values of one weight: 8 GB of float32."""

MAX_LISTED_CODES = 2**20
"""Most codes that are listed where no weights hold them."""

_MOST: dict[str, int] = {
    "image_size": MAX_SIDE,
    "num_channels": 2**12,
    "base_channels": 2**14,
    "channel_multiplier": 2**10,
    "decoder_channel_multiplier": 2**10,
    "num_downsamples": 16,
    "patch_size": 64,
    "num_res_blocks": 64,
    "num_attention_heads": 2**12,
    "latent_channels": 2**16,
    "embed_dim": 2**16,
    "quantized_size": 2**20,
    "num_codes": 2**24,
    "num_groups": 2**10,
    "alternating_steps": 10**4,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 512,
    "num_classes": 2**20,
    "num_labels": 2**20,
}
_LONGEST = {"channel_multiplier": 16, "decoder_channel_multiplier": 16, "levels": 24, "attn_resolutions": 64}
# Other people's networks: how deep they are, all stages together, and any other number of theirs.
_DEPTH = re.compile(r"(.*_)?(layers|blocks|depth|depths|stages)")
_DEEPEST = 512
_LARGEST = 2**24
# A checkpoint may lack a head or a larger codebook. It cannot lack most of a model.
_FREE_VALUES, _SHARE = 2**26, 16


def refuse_impossible(fields: Mapping[str, Any], foreign: bool = False) -> None:
    """Refuses numbers that no model of today has.

    Args:
        fields: Fields of a configuration. Those of a nested dictionary are another project's.
        foreign: Whether these fields are.

    Raises:
        ValueError: For the first number that is too large.
    """
    for name, value in fields.items():
        if isinstance(value, dict):
            refuse_impossible(value, foreign=name not in ("id2label", "label2id", "vq_config"))
            continue
        values = value if isinstance(value, list | tuple) else [value]
        numbers = [each for each in values if isinstance(each, int | float) and not isinstance(each, bool)]
        if len(values) > _LONGEST.get(name, len(values)):
            raise ValueError(f"`{name}` must have at most {_LONGEST[name]} entries, got {len(values)}.")
        most = _MOST.get(name)
        if foreign and _DEPTH.fullmatch(name):
            numbers, most = [sum(numbers)], _DEEPEST
        elif foreign:
            most = min(most or _LARGEST, _LARGEST)
        if most is not None:
            for each in numbers:
                require_at_most(f"`{name}`", each, most)


def require_listable(what: str, num_codes: int) -> None:
    """Raises a `ValueError` if the codes that `what` makes, which are no weights, are too many to list."""
    if num_codes > MAX_LISTED_CODES:
        raise ValueError(
            f"{what} make {num_codes:,} codes, too many to list: the limit is {MAX_LISTED_CODES:,}. `lookup` gives "
            "the codes of single ids."
        )


def require_at_most(name: str, value: float, maximum: int) -> None:
    """Raises a `ValueError` if a value is above its maximum."""
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum:,}, got {value:,}.")


def require_weight(fields: str, *shape: int) -> None:
    """Raises a `ValueError` if the fields of these names together make a weight that is too large."""
    if math.prod(shape) > MAX_WEIGHT:
        raise ValueError(
            f"{fields} would make a weight of {' x '.join(f'{size:,}' for size in shape)} values. It must have at "
            f"most {MAX_WEIGHT:,}. Make one of them smaller."
        )


class WeightsFirstMixin:
    """A model that compares its weights with a checkpoint's before it gets memory for those that the file lacks."""

    def _move_missing_keys_from_meta_to_device(self, missing_keys: Iterable[str], *args: Any, **kwargs: Any) -> Any:
        """As every model's, which transformers calls once the checkpoint's weights are in their places.

        Raises:
            ValueError: If what the checkpoint lacks, or has in other shapes, is far larger than all that it has.
        """
        missing = set(missing_keys) - set(getattr(self, "all_tied_weights_keys", {}))
        weights: dict[str, torch.Tensor] = dict(self.named_parameters()) | dict(self.named_buffers())  # type: ignore[attr-defined]
        lacking = {name: weights[name].numel() for name in missing if name in weights}
        found = sum(weight.numel() for name, weight in weights.items() if not weight.is_meta)
        if sum(lacking.values()) > _FREE_VALUES + _SHARE * found:
            largest = max(lacking, key=lacking.__getitem__)
            raise ValueError(
                f"The configuration asks for {sum(lacking.values()):,} values that the weights do not have, such as "
                f"'{largest}' of the shape {tuple(weights[largest].shape)}. The weights have {found:,}. One of the "
                "two belongs to another model."
            )
        return super()._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)  # type: ignore[misc]


__all__ = [
    "MAX_SIDE",
    "MAX_WEIGHT",
    "WeightsFirstMixin",
    "refuse_impossible",
    "require_at_most",
    "require_listable",
    "require_weight",
]
