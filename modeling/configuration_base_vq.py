# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What all configurations of this package share: the version that saved them, and a word about misspelled fields."""

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .limits_vq import refuse_impossible
from .version_vq import VERSION_KEY, __version__, check_version

# How alike a name must be to one of ours to count as a slip; `num_code` and `embedding_dim` are, `hidden_dim` is not.
_LIKENESS = 0.8
_is_reading: ContextVar[bool] = ContextVar("is_reading", default=False)

# What transformers has built in. It takes any other name for a kernel, which it fetches from the Hub and runs.
_BUILT_IN = (None, "eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")
_IMPLEMENTATION = re.compile(r"_*(attn|experts)_implementation(_internal)?")
_ALIASES = "attribute_map"  # a field of this name would give other fields new names


class HubConfig(PreTrainedConfig):
    """Base class of configurations.

    transformers makes an attribute of every field it does not know. That is right for a file, which another version or
    tool may have written. A field that somebody has misspelled by hand would be lost silently, so it is refused.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_kernels({**vars(self), **kwargs})
        refuse_impossible({**vars(self), **kwargs})
        check_version(kwargs.pop(VERSION_KEY, None))
        if not type(self).__module__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
            # Written for `trust_remote_code`. Read here, it would hide the registered pipeline and ask for the flag.
            kwargs.pop("custom_pipelines", None)
        if not is_reading():
            self._refuse_misspelled(kwargs)
        self._build_nested()
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As of every configuration; unknown fields become attributes, also those that are nearly one of ours."""
        # The caller may choose what a file may not. This sets it in the nested configurations as well.
        chosen = {
            name: kwargs.pop(name) for name in ("attn_implementation", "experts_implementation") if name in kwargs
        }
        with _reading():
            made = super().from_dict(config_dict, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        for name, value in chosen.items():
            setattr(config, f"_{name}", value)
        return made

    @classmethod
    def from_json_file(cls, json_file: Any) -> Any:
        """As `from_dict`, of a file."""
        with _reading():
            return super().from_json_file(json_file)

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the version of this code."""
        return super().to_dict() | {VERSION_KEY: __version__}

    def _build_nested(self) -> None:
        """Makes configurations of the fields of nested ones, which have been checked by then."""

    def _refuse_misspelled(self, unknown: dict[str, Any]) -> None:
        theirs = {field.name for field in fields(PreTrainedConfig)}
        ours = [field.name for field in fields(self) if field.name not in theirs]
        for name in unknown:
            if name.startswith("_") or hasattr(PreTrainedConfig, name):
                continue
            near = difflib.get_close_matches(name, ours, n=1, cutoff=_LIKENESS)
            if near:
                raise ValueError(
                    f"{type(self).__name__} has no field `{name}`: did you mean `{near[0]}`? A field of your own "
                    f"can be set afterwards: `config.{name} = ...`."
                )

    def _require_at_least(self, name: str, minimum: int) -> None:
        require_at_least(f"`{name}`", getattr(self, name), minimum)


def refuse_kernels(fields: Mapping[str, Any]) -> None:
    """Refuses fields that make transformers fetch a kernel from the Hub and run it.

    Args:
        fields: Fields of a configuration, with those of nested ones.

    Raises:
        ValueError: If one of them asks for an implementation that transformers does not have built in.
    """
    rest: list[tuple[str, Any]] = list(fields.items())
    while rest:
        name, value = rest.pop()
        if name == _ALIASES:
            raise ValueError(f"A configuration must not have a field `{_ALIASES}`, got {value!r}. Remove it.")
        if _IMPLEMENTATION.fullmatch(name):
            for each in value.values() if isinstance(value, dict) else [value]:
                if not (each is None or isinstance(each, str)) or each not in _BUILT_IN:
                    known = ", ".join(map(repr, _BUILT_IN))
                    public = name.strip("_").removesuffix("_internal")
                    raise ValueError(
                        f"`{name}` of a configuration must be one of {known}, got {value!r}. transformers could fetch "
                        "code under this name and run it. If you trust it, remove the field and give the name to "
                        f"`from_pretrained(..., {public}=...)`."
                    )
        elif isinstance(value, Mapping):
            rest += [(str(key), each) for key, each in value.items()]
        elif isinstance(value, list | tuple):
            rest += [("", each) for each in value]


def require_at_least(name: str, value: float, minimum: int) -> None:
    """Raises a `ValueError` if a value is less than its minimum, or no number."""
    if not value >= minimum:
        off = "" if minimum else ": 0 turns it off, it must not be negative"
        raise ValueError(f"{name} must be at least {minimum}, got {value}{off}.")


def is_reading() -> bool:
    """Whether a configuration is made of what a file says, and not by hand."""
    return _is_reading.get()


@contextmanager
def _reading() -> Iterator[None]:
    token = _is_reading.set(True)
    try:
        yield
    finally:
        _is_reading.reset(token)


__all__ = ["HubConfig", "is_reading", "refuse_kernels", "require_at_least"]
