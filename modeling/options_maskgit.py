# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The one list of sampling options. Pipelines, trainers, evaluation and command lines read it here."""

import difflib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from typing import Any, Literal, TypeVar, get_args, get_origin

import torch

from .masking_maskgit import MaskSchedule
from .sampling_maskgit import GuidanceSchedule

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class MaskGitSampling:
    """How [`MaskGitModel.generate`] samples; wrong values raise a `ValueError`.

    An option is added by a field here and by what the sampler does with its value. The signature of `generate`, the
    pipeline "image-generation", the training arguments, the evaluation and the command lines read the fields.
    """

    num_steps: int = field(
        default=8,
        metadata={"help": "Forwards of the transformer, from 1 to the number of tokens of an image."},
    )
    guidance_scale: float | Sequence[float] | torch.Tensor = field(
        default=1.0,
        metadata={
            "help": "Strength s of the guidance towards the class, which makes logits u + s (c - u) from those with "
            "the class (c) and those without (u). 1 turns it off. In Python also one for each image."
        },
    )
    schedule: MaskSchedule = field(
        default="arccos", metadata={"help": "How the share of hidden tokens falls, see `mask_ratio`."}
    )
    sampler: Literal["confidence", "halton"] = field(
        default="confidence",
        metadata={
            "help": "'confidence' (MaskGIT) keeps the guesses of the highest log-probability plus noise. 'halton' "
            "(Halton-MaskGIT) goes through the cells in the order of the Halton sequence. With more than one group it "
            "first goes through all tokens of the first group."
        },
    )
    guidance_schedule: GuidanceSchedule = field(
        default="constant",
        metadata={
            "help": "How the guidance grows. With r = step / num_steps, counted from 0, s becomes 1 + (s - 1) f(r). "
            "f is 1 for 'constant', r for 'linear', and MaskBit's (1 - cos(pi r^power)) / 2 for 'power_cosine'."
        },
    )
    guidance_power: float | None = field(
        default=None, metadata={"help": "The power of 'power_cosine' alone, above 0; 3 if not given, as in MaskBit."}
    )
    temperature: float | tuple[float, float] = field(
        default=1.0,
        metadata={
            "help": "Divides the logits, so less than 1 sharpens; above 0. In Python a pair gives that of the first "
            "and of the last step. (Halton-MaskGIT multiplies instead: its 1 -> 1.2 is (1.0, 0.83) here.)"
        },
    )
    choice_temperature: float | None = field(
        default=None,
        metadata={
            "help": "For 'confidence' alone: the weight of the Gumbel noise on the log-probabilities, at least 0. It "
            "falls linearly to 0 at the last step. 4.5 if not given, as in MaskGIT; MaskBit takes 7.8, TiTok 1."
        },
    )
    top_k: int | None = field(
        default=None,
        metadata={"help": "Draw among this many codes of the highest probability (more, if some are equal)."},
    )
    top_p: float | None = field(
        default=None,
        metadata={"help": "Draw among the fewest codes whose probabilities sum up to this share, in (0, 1]."},
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value, names = getattr(self, option.name), get_args(option.type)
            if get_origin(option.type) is Literal and value not in names:
                *others, last = (f'"{name}"' for name in names)
                raise ValueError(f"`{option.name}` must be {', '.join(others)} or {last}, got {value!r}.")
        if not isinstance(self.num_steps, Integral) or self.num_steps < 1:
            raise ValueError(
                f"`num_steps` must be a whole number from 1 to the number of tokens of an image, got {self.num_steps}."
            )
        if not torch.as_tensor(self.guidance_scale, dtype=torch.float32).isfinite().all():
            raise ValueError(f"`guidance_scale` must be finite, got {self.guidance_scale}.")
        if self.guidance_power is not None:
            if self.guidance_schedule != "power_cosine":
                raise ValueError('`guidance_power` has no effect without `guidance_schedule="power_cosine"`.')
            if not self.guidance_power > 0:
                raise ValueError(f"`guidance_power` must be above 0, got {self.guidance_power}.")
        if isinstance(self.temperature, Sequence) and len(self.temperature) != 2:
            raise ValueError(f"`temperature` must be one number, or the first and the last, got {self.temperature}.")
        if not all(value > 0 for value in self._first_and_last_temperature):
            raise ValueError(
                f"`temperature` must be above 0, got {self.temperature}. `top_k=1` takes the likeliest code."
            )
        if self.choice_temperature is not None:
            if self.sampler == "halton":
                raise ValueError(
                    '`choice_temperature` has no effect with `sampler="halton"`, which keeps all guesses.'
                )
            if not self.choice_temperature >= 0:
                raise ValueError(f"`choice_temperature` must be at least 0, got {self.choice_temperature}.")
        if self.top_k is not None and not (isinstance(self.top_k, Integral) and self.top_k >= 1):
            raise ValueError(f"`top_k` must be a whole number of at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be in (0, 1], got {self.top_p}.")

    def require_steps_within(self, num_tokens: int) -> None:
        """Refuses more steps than an image has tokens.

        Raises:
            `ValueError`: if `num_steps` is above `num_tokens`.
        """
        if self.num_steps > num_tokens:
            raise ValueError(
                f"`num_steps` must be from 1 to {num_tokens}, the tokens of an image, got {self.num_steps}."
            )

    @property
    def _first_and_last_temperature(self) -> tuple[float, float]:
        first, last = self.temperature if isinstance(self.temperature, Sequence) else (self.temperature,) * 2
        return first, last

    @property
    def temperature_of_steps(self) -> list[float]:
        """One temperature for each step."""
        first, last = self._first_and_last_temperature
        return torch.linspace(first, last, self.num_steps).tolist()

    def with_options(self, options: Mapping[str, Any], known: Iterable[str]) -> "MaskGitSampling":
        """A copy with some options changed.

        Args:
            options: Names and values.
            known: All names that the caller takes, for the message.

        Raises:
            `TypeError`: for an unknown name; it tells the nearest one of `known`.
            `ValueError`: for a wrong value.
        """
        for name in options.keys() - {option.name for option in fields(self)}:
            nearest = difflib.get_close_matches(name, [*known], n=1)
            hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Its arguments are {', '.join(known)}."
            raise TypeError(f"`generate` has no argument {name!r}. {hint}")
        return replace(self, **options)


def takes_sampling_options(method: Method) -> Method:
    """Names the options in the signature of a method that takes them as `**options`, for `help` and for notebooks."""
    signature = inspect.signature(method)
    named = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    options = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option.type)
        for option in fields(MaskGitSampling)
    ]
    method.__signature__ = signature.replace(parameters=[*named, *options])  # type: ignore[attr-defined]
    return method


def _described(options: type) -> str:
    """The docstring of the options, with the help of each field."""
    lines = [f"{each.name} (defaults to `{each.default!r}`): {each.metadata['help']}" for each in fields(options)]
    wrapped = [
        textwrap.fill(line, 119, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)
        for line in lines
    ]
    return "\n".join([inspect.cleandoc(options.__doc__ or ""), "", "Args:", *wrapped])


MaskGitSampling.__doc__ = _described(MaskGitSampling)

__all__ = ["MaskGitSampling", "takes_sampling_options"]
