# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The fields of quantizers, for configurations, and their only validation, which the layers call as well."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from huggingface_hub.dataclasses import strict

from .configuration_base_vq import HubConfig, require_at_least
from .limits_vq import require_at_most, require_weight

QUANTIZER_TYPES = ("vector", "group", "residual", "fsq")
"""Names of the kinds of quantizers that this package has, for `quantizer_type`."""

REGISTERED_TYPES: list[str] = []
"""Names of other people's kinds, see `register_quantizer`."""

MAX_CODES = 2**24
"""Most codes of a quantizer: the uses of each are counted."""

_Norm = Literal["none", "l2", "clip", "bn", "gn", "in"]
_CodeNorm = Literal["none", "l2", "clip"]
_AffineMode = Literal["learned", "running"]
_ReplacePolicy = Literal["input", "kmeans", "busy"]
_StepKind = Literal["sgd", "centroid"]
_CodebookUpdate = Literal["gradient", "ema"]
_GradientEstimator = Literal["ste", "rotation"]
_LevelActivation = Literal["tanh", "sigmoid"]
_CHOICES: dict[str, Any] = {
    "norm": _Norm,
    "cb_norm": _CodeNorm,
    "affine_mode": _AffineMode,
    "replace_policy": _ReplacePolicy,
    "alternating_kind": _StepKind,
    "codebook_update": _CodebookUpdate,
    "gradient_estimator": _GradientEstimator,
    "activation": _LevelActivation,
}

RECOMMENDED_QUANTIZER: dict[str, Any] = {
    "beta": 0.98,
    "sync_nu": 0.2,
    "affine_lr": 0.0,
    "affine_groups": 1,
    "affine_mode": "learned",
    "replace_freq": 20,
    "replace_policy": "input",
    "kmeans_init": True,
    "norm": None,
    "cb_norm": None,
    "alternating_steps": 1,
    "alternating_kind": "centroid",
    "alternating_lr": None,
    "codebook_update": "gradient",
    "gradient_estimator": "ste",
}
"""Keyword arguments of `VectorQuant` for the full method; the defaults of configurations' fields of the same names.

In a loop of your own, add `3 * out.loss` to a mean squared error of pixels in [-1, 1]. On the shipped emoji the
weights 1 to 30 gave the same held-out error, within the noise of two seeds: 9.05 to 9.21 (x 1e-3) with codes of 8
dimensions and 8.66 to 9.11 with 64. A weight of 0.1 gave 9.98 and 10.17. Without the loss nothing keeps the vectors
small, and the error was 12.10 and 14.65. Where your error is larger by a factor, because it is a sum for example, make
the weight larger by this factor. `VQModel` measures its error on the scale [0, 1], so its weight of 1 is 4 here.
"""

_CODEBOOK = {name: name for name in (*RECOMMENDED_QUANTIZER, "codebook_decay")}
_GROUPS = {"groups": "num_groups", "share": "share_codebook"}
_LEVELS = _GROUPS | {"quantizer_dropout": "quantizer_dropout"}
# Arguments of a kind's layer -> fields, beside `feature_size`, `num_codes` and `dim`, which every kind takes. Layers
# of other kinds get `quantizer_options`.
_FIELDS: dict[str, dict[str, str]] = {
    "vector": _CODEBOOK,
    "group": _CODEBOOK | _GROUPS,
    "residual": _CODEBOOK | _LEVELS,
    "fsq": {"levels": "levels", "activation": "level_activation"},
}


@strict
class QuantizerConfig(HubConfig):
    r"""The fields of a quantizer, for the configuration of a model that has one.

    Args:
        quantizer_type: `"vector"`: one code per position. `"group"`: one code for each of `num_groups` slices of the
            channels. `"residual"`: `num_groups` codes that sum up. `"fsq"`: channels rounded to `levels`, without a
            codebook. Or the name of a kind of your own, see [`register_quantizer`].
        quantizer_options: Arguments for the layer of a kind of your own.
        num_codes: Codes in total, over all groups. At least 1. Of `"fsq"`, the product of `levels`.
        levels: `"fsq"` only, and needed there. Levels of each channel, at least 2, such as `[8, 5, 5, 5]` for vectors
            of four channels and 1,000 codes.
        level_activation: `"tanh"` or `"sigmoid"`. `"fsq"` only. What bounds a channel: `tanh(x)`, or `2 sigmoid(1.6 x)
            - 1`, under which a normally distributed channel becomes about uniform between its bounds (iFSQ).
        num_groups: Slices of a `"group"` quantizer (must divide the size of the vectors) or levels of a `"residual"`
            one.
        share_codebook: Whether all groups or levels use one codebook. If not, `num_codes` is split evenly among them.
        quantizer_dropout: `"residual"` only. Share of the training batches, in [0, 1], that use only the first levels,
            a random number of them, so that the first levels alone become a coarser description.
        beta: Weight of the codebook's term of the commitment loss, in [0, 1]; the encoder's term gets `1 - beta`.
        sync_nu: Weight of the task gradient that codes receive (synchronized commitment), at least 0.
        affine_lr: Scale of the learned affine map of the codes, at least 0; 0 turns it off.
        affine_groups: Blocks of codes with an affine map of their own; must divide the codes of a codebook.
        affine_mode: `"learned"` or `"running"`. Whether the affine map is learned or follows running statistics.
        replace_freq: Training batches without use after which a code is replaced; 0 never replaces. Large codebooks
            want more of them, enough to bring ten vectors for each code, and policy "kmeans".
        replace_policy: `"input"`, `"kmeans"` or `"busy"`. What a replaced code becomes.
        kmeans_init: Whether the first training batch initializes the codes by k-means++.
        norm: `"l2"`, `"clip"`, `"bn"`, `"gn"`, `"in"`, `"none"`. Normalization of the vectors.
        cb_norm: `"l2"`, `"clip"`, `"none"`. Normalization of the codes.
        alternating_steps: Inner steps on the commitment loss, for the codes alone, per batch; at least 0.
        alternating_kind: `"sgd"` or `"centroid"`. Kind of the inner step.
        alternating_lr: Size of the inner step, above 0; the default belongs to the kind.
        codebook_update: `"gradient"` or `"ema"`. What moves the codes between inner steps.
        codebook_decay: Decay of the moving averages of `"ema"`, in [0, 1).
        gradient_estimator: `"ste"` or `"rotation"`. How the gradient passes the quantizer.
        commitment_weight: Weight of the commitment loss in the model's loss, at least 0 (alpha in the paper).

    The fields `beta` to `gradient_estimator` are arguments of `VectorQuant` and default to `RECOMMENDED_QUANTIZER`.
    They are for the kinds with a codebook: `"vector"`, `"group"` and `"residual"`.
    """

    quantizer_type: str = "vector"
    quantizer_options: dict[str, Any] | None = None
    num_codes: int = 1024
    levels: list[int] | tuple[int, ...] | None = None
    level_activation: _LevelActivation = "tanh"
    num_groups: int = 1
    share_codebook: bool = True
    quantizer_dropout: float | int = 0.0
    beta: float | int = RECOMMENDED_QUANTIZER["beta"]
    sync_nu: float | int = RECOMMENDED_QUANTIZER["sync_nu"]
    affine_lr: float | int = RECOMMENDED_QUANTIZER["affine_lr"]
    affine_groups: int = RECOMMENDED_QUANTIZER["affine_groups"]
    affine_mode: _AffineMode = RECOMMENDED_QUANTIZER["affine_mode"]
    replace_freq: int = RECOMMENDED_QUANTIZER["replace_freq"]
    replace_policy: _ReplacePolicy = RECOMMENDED_QUANTIZER["replace_policy"]
    kmeans_init: bool = RECOMMENDED_QUANTIZER["kmeans_init"]
    norm: _Norm | None = RECOMMENDED_QUANTIZER["norm"]
    cb_norm: _CodeNorm | None = RECOMMENDED_QUANTIZER["cb_norm"]
    alternating_steps: int = RECOMMENDED_QUANTIZER["alternating_steps"]
    alternating_kind: _StepKind = RECOMMENDED_QUANTIZER["alternating_kind"]
    alternating_lr: float | int | None = RECOMMENDED_QUANTIZER["alternating_lr"]
    codebook_update: _CodebookUpdate = RECOMMENDED_QUANTIZER["codebook_update"]
    codebook_decay: float | int = 0.99
    gradient_estimator: _GradientEstimator = RECOMMENDED_QUANTIZER["gradient_estimator"]

    commitment_weight: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.levels is not None:
            self.levels = list(self.levels)
            require_at_most("the number of `levels`", len(self.levels), 24)
            product = math.prod(self.levels)
            if self.quantizer_type == "fsq" and self.num_codes == type(self).num_codes:
                self.num_codes = product if product <= MAX_CODES else self.num_codes  # told of as levels
        super().__post_init__(**kwargs)

    def _quantizer_kwargs(self, feature_size: int | None, dim: int) -> dict[str, Any]:
        """Arguments of the layer that `quantizer_type` names."""
        kwargs: dict[str, Any] = {"feature_size": feature_size, "num_codes": self.num_codes, "dim": dim}
        fields = _FIELDS.get(self.quantizer_type)
        if fields is None:
            return kwargs | (self.quantizer_options or {})
        return kwargs | {argument: getattr(self, field) for argument, field in fields.items()}

    def _check_quantizer(self, feature_size: int | None, called: str) -> None:
        """Checks the quantizer's fields. `called` is what a message says for `feature_size`, None if not known yet."""

        def say(argument: str) -> str:
            name, sign, value = argument.partition("=")
            field = _FIELDS.get(kind, {}).get(name, name)
            return called if name == "feature_size" else f"`{field}{sign}{value}`"

        kind = self.quantizer_type
        if kind not in (*QUANTIZER_TYPES, *REGISTERED_TYPES):
            raise ValueError(
                f"There is no quantizer_type {kind!r}, only {', '.join((*QUANTIZER_TYPES, *REGISTERED_TYPES))}. If it "
                f"is a kind of your own, register it first: `hf_vq.register_quantizer({kind!r}, YourQuantizer)`."
            )
        if self.num_groups != 1 and kind in ("vector", "fsq"):
            raise ValueError(
                f'`num_groups={self.num_groups}` needs `quantizer_type` "group" or "residual", got "{kind}".'
            )
        if self.quantizer_dropout and kind != "residual":
            raise ValueError(
                f'`quantizer_dropout={self.quantizer_dropout}` needs `quantizer_type="residual"`, got "{kind}".'
            )
        if self.levels is not None and kind != "fsq":
            raise ValueError(f'`levels={self.levels}` needs `quantizer_type="fsq"`, got "{kind}".')
        if self.quantizer_options and kind in _FIELDS:
            raise ValueError(
                f"`quantizer_options` are for kinds of your own, got {self.quantizer_options}. The settings of "
                f'"{kind}" are fields of the configuration.'
            )
        taken = {"feature_size", "num_codes", "dim"} & set(self.quantizer_options or {})
        if taken:
            raise ValueError(f"`quantizer_options` must not hold {sorted(taken)}, which every layer is given anyway.")
        self._require_at_least("num_groups", 1)
        self._require_at_least("commitment_weight", 0)
        check_quantizer(kind, self._quantizer_kwargs(feature_size, dim=1), say)


def check_quantizer(kind: str, arguments: Mapping[str, Any], say: Callable[[str], str] = str) -> None:
    """Checks the arguments of a quantizer layer, alone and against each other.

    Args:
        kind: A name in `QUANTIZER_TYPES`.
        arguments: The layer's arguments; `feature_size` may be None if it is not known yet.
        say: How a message calls an argument, or an argument and its value such as "share=False".

    Raises:
        ValueError: for the first value that is out of range or makes no sense; it says what was expected.
    """
    ours = _FIELDS.get(kind, {})  # a kind of somebody's own checks its options itself
    for name in filter(ours.__contains__, _CHOICES):
        choices = (*get_args(_CHOICES[name]), *([None] if name in ("norm", "cb_norm") else []))
        if arguments[name] not in choices:
            raise ValueError(f"{say(name)} must be one of {', '.join(map(repr, choices))}, got {arguments[name]!r}.")
    for name in ("feature_size", "num_codes"):
        if arguments[name] is not None:
            require_at_least(say(name), arguments[name], 1)
    if arguments["num_codes"] is not None:
        require_at_most(say("num_codes"), arguments["num_codes"], MAX_CODES)
        if ours and kind != "fsq":
            shape = arguments["num_codes"], arguments["feature_size"] or 1
            require_weight(f"{say('num_codes')} and {say('feature_size')}", *shape)
    if kind == "fsq":
        _check_levels(arguments, say)
    elif ours:
        _check_codebook(arguments, say)
        _check_groups(kind, arguments, say)


def _check_codebook(arguments: Mapping[str, Any], say: Callable[[str], str]) -> None:
    require_at_least(say("affine_groups"), arguments["affine_groups"], 1)
    for name in ("sync_nu", "affine_lr", "replace_freq", "alternating_steps"):
        require_at_least(say(name), arguments[name], 0)
    if not 0 <= arguments["beta"] <= 1:
        raise ValueError(
            f"{say('beta')} must be in [0, 1], got {arguments['beta']}. It weights the codebook's term of the "
            "commitment loss: 1 moves only the codes, 0 only the encoder."
        )
    if not 0 <= arguments["codebook_decay"] < 1:
        raise ValueError(f"{say('codebook_decay')} must be in [0, 1), got {arguments['codebook_decay']}.")
    if arguments["alternating_lr"] is not None and not arguments["alternating_lr"] > 0:
        raise ValueError(
            f"{say('alternating_lr')} must be above 0, or None for the default of {say('alternating_kind')}, got "
            f"{arguments['alternating_lr']}. {say('alternating_steps=0')} turns the inner steps off."
        )
    if arguments["codebook_update"] == "ema" and (arguments["sync_nu"] > 0 or arguments["alternating_steps"] > 0):
        ema, no_sync, no_steps = map(say, ('codebook_update="ema"', "sync_nu=0", "alternating_steps=0"))
        raise ValueError(
            f"{ema} needs {no_sync} and {no_steps}, got {arguments['sync_nu']} and {arguments['alternating_steps']}: "
            "EMA codes receive no gradient, and such a codebook already moves to its vectors."
        )


def _check_groups(kind: str, arguments: Mapping[str, Any], say: Callable[[str], str]) -> None:
    groups, share, num_codes = arguments.get("groups", 1), arguments.get("share", True), arguments["num_codes"]
    require_at_least(say("groups"), groups, 1)
    require_at_most(say("groups"), groups, 2**10)
    is_running, running = arguments["affine_mode"] == "running", say('affine_mode="running"')
    if kind == "group" and arguments["feature_size"] is not None and arguments["feature_size"] % groups:
        raise ValueError(
            f"{say('groups')} must divide {say('feature_size')} in a group quantizer, got {groups} groups and "
            f"{arguments['feature_size']} dimensions."
        )
    if kind == "residual" and num_codes < groups:
        raise ValueError(
            f"{say('num_codes')} must be at least the number of levels, got {num_codes} codes and {groups} levels."
        )
    if kind == "residual" and groups > 1 and share and is_running:
        raise ValueError(
            f"{running} needs {say('share=False')} in a residual quantizer: each level has moments of its own."
        )
    if is_running and arguments["affine_groups"] != 1:
        raise ValueError(
            f"{running} needs {say('affine_groups=1')}, got {arguments['affine_groups']}: "
            "running moments are those of a whole codebook."
        )
    dropout = arguments.get("quantizer_dropout", 0)
    if not 0 <= dropout <= 1:
        raise ValueError(
            f"{say('quantizer_dropout')} must be in [0, 1], the share of the batches that leave out levels, "
            f"got {dropout}."
        )
    if dropout and groups == 1:
        raise ValueError(f"{say(f'quantizer_dropout={dropout}')} needs more than one level, got {say('groups=1')}.")
    if not share and num_codes % groups:
        raise ValueError(
            f"{say('groups')} must divide {say('num_codes')}, got {groups} and {num_codes}: the codes must be "
            f"divisible by the {groups} separate codebooks. With {say('share=True')} there is no split."
        )
    codebook_size = num_codes if share else num_codes // groups
    if codebook_size % arguments["affine_groups"]:
        raise ValueError(
            f"{say('affine_groups')} must divide the {codebook_size} codes of a codebook, got "
            f"{arguments['affine_groups']} affine groups and {codebook_size} codes."
        )


def _check_levels(arguments: Mapping[str, Any], say: Callable[[str], str]) -> None:
    levels, num_codes, size = arguments["levels"], arguments["num_codes"], arguments["feature_size"]
    if not levels or min(levels) < 2:
        raise ValueError(
            f"{say('levels')} must be the number of levels of each channel, at least 2, such as [8, 5, 5, 5], got "
            f"{levels}."
        )
    if size is not None and size != len(levels):
        raise ValueError(
            f"{say('feature_size')} must be the number of {say('levels')}, got {size} channels and {len(levels)} "
            f"levels: {levels}."
        )
    if math.prod(levels) > MAX_CODES:
        raise ValueError(
            f"{say('levels')} must make at most {MAX_CODES:,} codes, since the uses of each are counted, got "
            f"{levels}, which make {math.prod(levels):,}."
        )
    if num_codes != math.prod(levels):
        raise ValueError(
            f"{say('num_codes')} must be the product of {say('levels')}, got {num_codes} codes and {levels}, whose "
            f"product is {math.prod(levels)}. It may be left out."
        )


__all__ = [
    "MAX_CODES",
    "QUANTIZER_TYPES",
    "RECOMMENDED_QUANTIZER",
    "REGISTERED_TYPES",
    "QuantizerConfig",
    "check_quantizer",
]
