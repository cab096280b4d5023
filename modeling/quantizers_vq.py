# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The kinds of quantizer layers by name: the table that a configuration's `quantizer_type` is looked up in."""

from typing import Any

from .base_quantizer_vq import Quantizer
from .binary_spherical_vq import BinarySphericalQuant
from .checks_quantizer_vq import QUANTIZER_TYPES, REGISTERED_TYPES
from .finite_scalar_vq import FiniteScalarQuant
from .group_vq import GroupVectorQuant
from .index_backprop_vq import IndexBackpropQuant
from .lookup_free_vq import LookupFreeQuant
from .quantizer_vq import VectorQuant
from .residual_implicit_vq import ResidualFiniteScalarQuant, ResidualLookupFreeQuant
from .residual_vq import ResidualVectorQuant
from .sim_vq import SimVectorQuant

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vector": VectorQuant,
    "group": GroupVectorQuant,
    "residual": ResidualVectorQuant,
    "fsq": FiniteScalarQuant,
    "lfq": LookupFreeQuant,
    "bsq": BinarySphericalQuant,
    "residual_fsq": ResidualFiniteScalarQuant,
    "residual_lfq": ResidualLookupFreeQuant,
    "simvq": SimVectorQuant,
    "ibq": IndexBackpropQuant,
}
"""`quantizer_type` -> class. The names of ours stand in `QUANTIZER_TYPES` as well, for configurations."""


def register_quantizer(name: str, quantizer_class: type[Quantizer]) -> None:
    """Makes a kind of quantizer known, so that configurations can name it.

    Then `VQConfig(quantizer_type=name, quantizer_options={...})` makes models with the layer
    `quantizer_class(feature_size, num_codes, dim=1, **quantizer_options)`. They train, save and are measured like
    others. Whoever loads such a model registers the class first: its code does not travel with the weights.

    Args:
        name: What `quantizer_type` will say.
        quantizer_class: A subclass of [`Quantizer`]. Registering the same class again changes nothing.

    Raises:
        TypeError: it is no subclass of `Quantizer`.
        ValueError: the name belongs to another class.

    Example:

    ```python
    >>> register_quantizer("mine", MyQuantizer)
    >>> config = VQConfig(quantizer_type="mine", num_codes=64, quantizer_options={"temperature": 0.5})
    ```
    """
    if not (isinstance(quantizer_class, type) and issubclass(quantizer_class, Quantizer)):
        raise TypeError(f"A kind of quantizer is a subclass of hf_vq.Quantizer, got {quantizer_class!r}.")
    known = QUANTIZERS.get(name, quantizer_class)
    if known is not quantizer_class:
        raise ValueError(
            f"The name {name!r} belongs to {known.__module__}.{known.__qualname__}. Give "
            f"{quantizer_class.__qualname__} another one."
        )
    QUANTIZERS[name] = quantizer_class
    if name not in (*QUANTIZER_TYPES, *REGISTERED_TYPES):
        REGISTERED_TYPES.append(name)


def build_quantizer(config: Any) -> Quantizer:
    """The quantizer layer of a model with this configuration.

    Raises:
        ValueError: the layer, of a kind of somebody's own, lacks an attribute or contradicts the configuration.
    """
    quantizer_class = QUANTIZERS[config.quantizer_type]
    layer = quantizer_class(**config.quantizer_kwargs())
    lacking = [name for name in ("feature_size", "num_codes", "code_dim") if not hasattr(layer, name)]
    if lacking:
        raise ValueError(f"{quantizer_class.__name__} must set {', '.join(lacking)} in its `__init__`.")
    for mine, field in (("num_codes", "num_codes"), ("groups", "num_groups")):
        if getattr(layer, mine) != getattr(config, field):
            raise ValueError(
                f"{quantizer_class.__name__} has {mine}={getattr(layer, mine)}, but the configuration says "
                f"`{field}={getattr(config, field)}`. Give it `{field}={getattr(layer, mine)}`."
            )
    return layer


__all__ = ["QUANTIZERS", "build_quantizer", "register_quantizer"]
