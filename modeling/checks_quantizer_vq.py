# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The only validation of quantizers' settings, which configurations and layers call."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from .configuration_base_vq import require_at_least
from .limits_vq import require_at_most, require_weight

QUANTIZER_TYPES = ("vector", "group", "residual", "fsq", "lfq", "bsq", "simvq", "ibq", "residual_fsq", "residual_lfq")
"""Names of the kinds of quantizers that this package has, for `quantizer_type`."""

IMPLICIT = ("fsq", "lfq", "bsq", "residual_fsq", "residual_lfq")
"""The kinds whose codes are no weights."""

REGISTERED_TYPES: list[str] = []
"""Names of other people's kinds, see `register_quantizer`."""

MAX_CODES = 2**24
"""Most codes of a quantizer: the uses of each are counted."""

Norm = Literal["none", "l2", "clip", "bn", "gn", "in"]
CodeNorm = Literal["none", "l2", "clip"]
AffineMode = Literal["learned", "running"]
ReplacePolicy = Literal["input", "kmeans", "busy"]
StepKind = Literal["sgd", "centroid"]
CodebookUpdate = Literal["gradient", "ema"]
GradientEstimator = Literal["ste", "rotation", "diveq", "nsvq"]
LevelActivation = Literal["tanh", "sigmoid"]
_CHOICES: dict[str, Any] = {
    "norm": Norm,
    "cb_norm": CodeNorm,
    "affine_mode": AffineMode,
    "replace_policy": ReplacePolicy,
    "alternating_kind": StepKind,
    "codebook_update": CodebookUpdate,
    "gradient_estimator": GradientEstimator,
    "activation": LevelActivation,
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

_CODEBOOK = {name: name for name in (*RECOMMENDED_QUANTIZER, "codebook_decay", "wasserstein_weight")}
_GROUPS = {"groups": "num_groups", "share": "share_codebook"}
ENTROPY = ("entropy_weight", "entropy_diversity", "entropy_temperature")
"""Arguments of the kinds with an entropy loss."""

_ENTROPY = {name: name for name in ENTROPY}
_LEVELS = _GROUPS | {"quantizer_dropout": "quantizer_dropout"}
# Arguments of a kind's layer -> fields, beside `feature_size`, `num_codes` and `dim`, which every kind takes. Layers
# of other kinds get `quantizer_options`.
FIELDS: dict[str, dict[str, str]] = {
    "vector": _CODEBOOK,
    "group": _CODEBOOK | _GROUPS,
    "residual": _CODEBOOK | _LEVELS,
    "fsq": {"levels": "levels", "activation": "level_activation"},
    "residual_fsq": {"levels": "levels", "activation": "level_activation", "groups": "num_groups"},
    "residual_lfq": _ENTROPY | {"groups": "num_groups"},
    "lfq": _ENTROPY | {"groups": "num_groups"},
    "bsq": _ENTROPY | {"groups": "num_groups"},
    "simvq": {name: name for name in ("encoder_weight", "gradient_estimator")},
    "ibq": _ENTROPY | {"codebook_weight": "codebook_weight"},
}


def check_quantizer(kind: str, arguments: Mapping[str, Any], say: Callable[[str], str] = str) -> None:
    """Checks the arguments of a quantizer layer, alone and against each other.

    Args:
        kind: A name in `QUANTIZER_TYPES`.
        arguments: The layer's arguments; `feature_size` may be None if it is not known yet.
        say: How a message calls an argument, or an argument and its value such as "share=False".

    Raises:
        ValueError: for the first value that is out of range or makes no sense; it says what was expected.
    """
    ours = FIELDS.get(kind, {})  # a kind of somebody's own checks its options itself
    for name in filter(ours.__contains__, _CHOICES):
        choices = (*get_args(_CHOICES[name]), *([None] if name in ("norm", "cb_norm") else []))
        if arguments[name] not in choices:
            raise ValueError(f"{say(name)} must be one of {', '.join(map(repr, choices))}, got {arguments[name]!r}.")
    for name in ("feature_size", "num_codes"):
        if arguments[name] is not None:
            require_at_least(say(name), arguments[name], 1)
    if "groups" in ours:
        require_at_least(say("groups"), arguments["groups"], 1)
        require_at_most(say("groups"), arguments["groups"], 2**10)
    if kind in ("lfq", "bsq", "residual_lfq"):
        _check_bits(arguments, say, kind == "residual_lfq")
    if arguments["num_codes"] is not None:
        require_at_most(say("num_codes"), arguments["num_codes"], MAX_CODES)
        if ours and kind not in IMPLICIT:
            shape = arguments["num_codes"], arguments["feature_size"] or 1
            require_weight(f"{say('num_codes')} and {say('feature_size')}", *shape)
    for name in ("encoder_weight", "codebook_weight", "entropy_weight", "entropy_diversity"):
        if name in ours:
            require_at_least(say(name), arguments[name], 0)
    if "entropy_temperature" in ours and not arguments["entropy_temperature"] > 0:
        raise ValueError(f"{say('entropy_temperature')} must be above 0, got {arguments['entropy_temperature']}.")
    if kind in ("fsq", "residual_fsq"):
        _check_levels(arguments, say)
    elif kind == "simvq":
        if arguments["gradient_estimator"] not in ("ste", "rotation"):
            raise ValueError(
                f"{say('gradient_estimator')} must be 'ste' or 'rotation' for codes behind a map, got "
                f"{arguments['gradient_estimator']!r}."
            )
    elif "beta" in ours:
        _check_codebook(arguments, say)
        _check_groups(kind, arguments, say)


def _check_codebook(arguments: Mapping[str, Any], say: Callable[[str], str]) -> None:
    require_at_least(say("affine_groups"), arguments["affine_groups"], 1)
    for name in ("sync_nu", "affine_lr", "replace_freq", "alternating_steps", "wasserstein_weight"):
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
    if arguments["gradient_estimator"] in ("diveq", "nsvq") and arguments["sync_nu"] > 0:
        raise ValueError(
            f"{say('gradient_estimator')} {arguments['gradient_estimator']!r} needs {say('sync_nu=0')}, got "
            f"{arguments['sync_nu']}: it passes the task's gradient to the codes by itself."
        )
    if arguments["codebook_update"] == "ema" and (arguments["sync_nu"] > 0 or arguments["alternating_steps"] > 0):
        ema, no_sync, no_steps = map(say, ('codebook_update="ema"', "sync_nu=0", "alternating_steps=0"))
        raise ValueError(
            f"{ema} needs {no_sync} and {no_steps}, got {arguments['sync_nu']} and {arguments['alternating_steps']}: "
            "EMA codes receive no gradient, and such a codebook already moves to its vectors."
        )

    if arguments["codebook_update"] == "ema" and arguments["wasserstein_weight"] > 0:
        ema, no_distance = map(say, ('codebook_update="ema"', "wasserstein_weight=0"))
        raise ValueError(
            f"{ema} needs {no_distance}, got {arguments['wasserstein_weight']}: EMA codes receive no gradient, "
            "and the distance moves codes by one."
        )


def _check_bits(arguments: Mapping[str, Any], say: Callable[[str], str], is_residual: bool) -> None:
    size, groups, num_codes = arguments["feature_size"], arguments["groups"], arguments["num_codes"]
    if size is None:
        return
    if not is_residual and size % groups:
        raise ValueError(
            f"{say('groups')} must divide {say('feature_size')}, got {groups} groups and {size} channels: each "
            "token is made of an equal slice of the channels."
        )
    bits, books = (size, groups) if is_residual else (size // groups, 1)
    if books * 2**bits > MAX_CODES:
        more = "Fewer channels or levels make less" if is_residual else f"More {say('groups')} make smaller tokens"
        raise ValueError(
            f"{say('feature_size')} must make at most {MAX_CODES:,} codes, 2 to the number of channels of a token, "
            f"since the uses of each are counted, got {bits} channels{f' and {groups} levels' * is_residual}. {more}."
        )
    if num_codes != books * 2**bits:
        raise ValueError(
            f"{say('num_codes')} must be {f'{books} times ' * is_residual}2 to the number of channels of a token, "
            f"got {num_codes} codes and {bits} channels, which make {books * 2**bits}. It may be left out."
        )


def _check_groups(kind: str, arguments: Mapping[str, Any], say: Callable[[str], str]) -> None:
    groups, share, num_codes = arguments.get("groups", 1), arguments.get("share", True), arguments["num_codes"]
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
    groups = arguments.get("groups", 1)
    expected, times = math.prod(levels) * groups, f" times {groups} {say('groups')}" if groups > 1 else ""
    if expected > MAX_CODES:
        raise ValueError(
            f"{say('levels')} must make at most {MAX_CODES:,} codes, since the uses of each are counted, got "
            f"{levels}{times}, which make {expected:,}."
        )
    if num_codes != expected:
        raise ValueError(
            f"{say('num_codes')} must be the product of {say('levels')}{times}, got {num_codes} codes and {levels}, "
            f"which make {expected}. It may be left out."
        )


__all__ = [
    "ENTROPY",
    "FIELDS",
    "IMPLICIT",
    "MAX_CODES",
    "QUANTIZER_TYPES",
    "RECOMMENDED_QUANTIZER",
    "REGISTERED_TYPES",
    "check_quantizer",
]
