# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The kinds of quantizer layers by name: the table that a configuration's `quantizer_type` is looked up in."""

from typing import Any

from .base_quantizer_vq import Quantizer
from .quantizer_vq import GroupVectorQuant, VectorQuant
from .residual_vq import ResidualVectorQuant

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vector": VectorQuant,
    "group": GroupVectorQuant,
    "residual": ResidualVectorQuant,
}
"""`quantizer_type` -> class. The names of ours stand in `QUANTIZER_TYPES` as well, for configurations."""


def build_quantizer(config: Any) -> Quantizer:
    """The quantizer layer of a model with this configuration."""
    return QUANTIZERS[config.quantizer_type](**config.quantizer_kwargs())


__all__ = ["QUANTIZERS", "build_quantizer"]
