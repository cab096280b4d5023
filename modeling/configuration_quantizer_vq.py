# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The fields of quantizers, for the configurations of models that have one."""

import math
from collections.abc import Collection
from typing import Any

from huggingface_hub.dataclasses import strict

from .checks_quantizer_vq import (
    FIELDS,
    MAX_CODES,
    QUANTIZER_TYPES,
    RECOMMENDED_QUANTIZER,
    REGISTERED_TYPES,
    AffineMode,
    CodebookUpdate,
    CodeNorm,
    GradientEstimator,
    LevelActivation,
    Norm,
    ReplacePolicy,
    StepKind,
    check_quantizer,
)
from .configuration_base_vq import HubConfig, is_reading
from .limits_vq import require_at_most

_CHECKED_ALONE = {"levels", "num_groups", "share_codebook", "quantizer_dropout"}  # in files as well


@strict
class QuantizerConfig(HubConfig):
    r"""The fields of a quantizer, for the configuration of a model that has one.

    Args:
        quantizer_type: `"vector"`: one code per position. `"group"`: one code for each of `num_groups` slices of the
            channels. `"residual"`: `num_groups` codes that sum up. `"fsq"`: channels rounded to `levels`, without a
            codebook. `"lfq"` and `"bsq"`: the signs of the channels, as they are or on the unit sphere, as the bits of
            `num_groups` tokens. `"residual_fsq"` and `"residual_lfq"`: `num_groups` levels of these, from coarse to
            fine. `"simvq"`: frozen codes behind a learned linear map. `"ibq"`: the code with the largest dot product,
            and a gradient to all codes. Or the name of a kind of your own, see [`register_quantizer`].
        quantizer_options: Arguments for the layer of a kind of your own.
        num_codes: Codes in total, over all groups. At least 1. Of `"fsq"`, the product of `levels`; of `"lfq"` and
            `"bsq"`, 2 to the number of channels of a token; of their residual kinds, that of all levels. It may be
            left out there.
        levels: `"fsq"` and `"residual_fsq"` only, and needed there. Levels of each channel, at least 2, such as
            `[8, 5, 5, 5]` for vectors of four channels and 1,000 codes.
        level_activation: `"tanh"` or `"sigmoid"`. For the same kinds. What bounds a channel: `tanh(x)`, or
            `2 sigmoid(1.6 x) - 1`, under which a normally distributed channel becomes about uniform between its
            bounds (iFSQ).
        num_groups: Slices of a `"group"`, `"lfq"` or `"bsq"` quantizer (must divide the size of the vectors) or levels
            of a residual one.
        share_codebook: Whether all groups or levels use one codebook. If not, `num_codes` is split evenly among them.
            The levels of `"residual_fsq"` and `"residual_lfq"` never share: it becomes False there.
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
        wasserstein_weight: Weight, at least 0, of the squared 2-Wasserstein distance between vectors and codes, as
            normal distributions, in the training loss; it moves the codes.
        gradient_estimator: `"ste"`, `"rotation"`, `"diveq"` or `"nsvq"`. How the gradient passes the quantizer. The
            last two pass it to the codes as well and need `sync_nu=0`. `"simvq"` takes the first two.
        encoder_weight: `"simvq"` only. Weight of the encoder's term of the commitment loss, at least 0; the codes'
            is 1.
        codebook_weight: `"ibq"` only. Weight of the codes' term of the commitment loss, at least 0; the encoder's
            is 1.
        entropy_weight: `"lfq"`, `"bsq"`, `"residual_lfq"` and `"ibq"` only. Weight, at least 0, of the entropy of each
            vector's soft assignment, less that of the mean assignment.
        entropy_diversity: Weight of the entropy of the mean assignment among these two, at least 0.
        entropy_temperature: Temperature of the soft assignment, above 0.
        commitment_weight: Weight of the commitment loss in the model's loss, at least 0 (alpha in the paper).

    The fields `beta` to `gradient_estimator` are arguments of `VectorQuant` and default to `RECOMMENDED_QUANTIZER`.
    They are for the kinds with a codebook: `"vector"`, `"group"` and `"residual"`. A field that a kind does not use
    must have its default.
    """

    quantizer_type: str = "vector"
    quantizer_options: dict[str, Any] | None = None
    num_codes: int = 1024
    levels: list[int] | tuple[int, ...] | None = None
    level_activation: LevelActivation = "tanh"
    num_groups: int = 1
    share_codebook: bool = True
    quantizer_dropout: float | int = 0.0
    beta: float | int = RECOMMENDED_QUANTIZER["beta"]
    sync_nu: float | int = RECOMMENDED_QUANTIZER["sync_nu"]
    affine_lr: float | int = RECOMMENDED_QUANTIZER["affine_lr"]
    affine_groups: int = RECOMMENDED_QUANTIZER["affine_groups"]
    affine_mode: AffineMode = RECOMMENDED_QUANTIZER["affine_mode"]
    replace_freq: int = RECOMMENDED_QUANTIZER["replace_freq"]
    replace_policy: ReplacePolicy = RECOMMENDED_QUANTIZER["replace_policy"]
    kmeans_init: bool = RECOMMENDED_QUANTIZER["kmeans_init"]
    norm: Norm | None = RECOMMENDED_QUANTIZER["norm"]
    cb_norm: CodeNorm | None = RECOMMENDED_QUANTIZER["cb_norm"]
    alternating_steps: int = RECOMMENDED_QUANTIZER["alternating_steps"]
    alternating_kind: StepKind = RECOMMENDED_QUANTIZER["alternating_kind"]
    alternating_lr: float | int | None = RECOMMENDED_QUANTIZER["alternating_lr"]
    codebook_update: CodebookUpdate = RECOMMENDED_QUANTIZER["codebook_update"]
    codebook_decay: float | int = 0.99
    wasserstein_weight: float | int = 0.0
    gradient_estimator: GradientEstimator = RECOMMENDED_QUANTIZER["gradient_estimator"]
    encoder_weight: float | int = 0.25
    codebook_weight: float | int = 0.25
    entropy_weight: float | int = 0.1
    entropy_diversity: float | int = 1.0
    entropy_temperature: float | int = 0.01

    commitment_weight: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.levels is not None:
            self.levels = list(self.levels)
            require_at_most("the number of `levels`", len(self.levels), 24)
            product = math.prod(self.levels) * (
                max(1, self.num_groups) if self.quantizer_type == "residual_fsq" else 1
            )
            if self.quantizer_type in ("fsq", "residual_fsq") and self.num_codes == type(self).num_codes:
                self.num_codes = product if product <= MAX_CODES else self.num_codes  # told of as levels
        if self.quantizer_type in ("residual_fsq", "residual_lfq"):
            self.share_codebook = False  # ids count on from level to level
        super().__post_init__(**kwargs)
        if not is_reading():
            self.refuse_unused(vars(self))

    def refuse_unused(self, names: Collection[str]) -> None:
        """Refuses fields that the kind of quantizer does not use. A file may say what it likes of them.

        Args:
            names: The fields that somebody has set.

        Raises:
            ValueError: One of them has another value than its default, and does nothing.
        """
        kind = self.quantizer_type
        if kind not in (*FIELDS, *REGISTERED_TYPES):
            return  # told of as unknown
        known = {field for fields in FIELDS.values() for field in fields.values()} - _CHECKED_ALONE
        unused = sorted((known & set(names)) - set(FIELDS.get(kind, {}).values()))
        given = [name for name in unused if getattr(self, name) not in (getattr(type(self), name), "none")]
        if given:
            values = ", ".join(f"`{name}={getattr(self, name)!r}`" for name in given)
            owners = ", ".join(repr(name) for name, fields in FIELDS.items() if given[0] in fields.values())
            raise ValueError(
                f"A quantizer of the kind {kind!r} does not use {values}: leave out what it does not use. "
                f"`{given[0]}` is for the kinds {owners}."
            )

    def count_codes(self, feature_size: int | None) -> None:
        """Fills in the number of codes that follows from the size of the vectors, if it was left out."""
        is_residual = self.quantizer_type == "residual_lfq"
        is_left_out = self.num_codes == type(self).num_codes
        if (is_residual or self.quantizer_type in ("lfq", "bsq")) and feature_size and is_left_out:
            groups = max(1, self.num_groups)
            number = groups * 2**feature_size if is_residual else 2 ** (feature_size // groups)
            self.num_codes = number if number <= MAX_CODES else self.num_codes  # told of as too many

    def _quantizer_kwargs(self, feature_size: int | None, dim: int) -> dict[str, Any]:
        """Arguments of the layer that `quantizer_type` names."""
        kwargs: dict[str, Any] = {"feature_size": feature_size, "num_codes": self.num_codes, "dim": dim}
        fields = FIELDS.get(self.quantizer_type)
        if fields is None:
            return kwargs | (self.quantizer_options or {})
        return kwargs | {argument: getattr(self, field) for argument, field in fields.items()}

    def _check_quantizer(self, feature_size: int | None, called: str) -> None:
        """Checks the quantizer's fields. `called` is what a message says for `feature_size`, None if not known yet."""

        def say(argument: str) -> str:
            name, sign, value = argument.partition("=")
            field = FIELDS.get(kind, {}).get(name, name)
            return called if name == "feature_size" else f"`{field}{sign}{value}`"

        kind = self.quantizer_type
        if kind not in (*QUANTIZER_TYPES, *REGISTERED_TYPES):
            raise ValueError(
                f"There is no quantizer_type {kind!r}, only {', '.join((*QUANTIZER_TYPES, *REGISTERED_TYPES))}. If it "
                f"is a kind of your own, register it first: `hf_vq.register_quantizer({kind!r}, YourQuantizer)`."
            )
        grouped = [name for name, fields in FIELDS.items() if "groups" in fields]
        if self.num_groups != 1 and kind in FIELDS and kind not in grouped:
            raise ValueError(f"`num_groups={self.num_groups}` needs `quantizer_type` among {grouped}, got {kind!r}.")
        if self.quantizer_dropout and kind != "residual":
            raise ValueError(
                f'`quantizer_dropout={self.quantizer_dropout}` needs `quantizer_type="residual"`, got "{kind}".'
            )
        if not self.share_codebook and kind in ("fsq", "lfq", "bsq"):
            raise ValueError(f'`share_codebook=False` needs a codebook, and "{kind}" has none.')
        if self.levels is not None and kind not in ("fsq", "residual_fsq"):
            raise ValueError(f'`levels={self.levels}` needs `quantizer_type` "fsq" or "residual_fsq", got "{kind}".')
        if self.quantizer_options and kind in FIELDS:
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


__all__ = ["QuantizerConfig"]
