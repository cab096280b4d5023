# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What configurations of models with a quantizer share: the fields of the quantizer and their checks."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .version_vq import VERSION_KEY, __version__, check_version

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
"""Keyword arguments of `VectorQuant` for the full method; the defaults of configurations' fields of the same names."""


@strict
class QuantizerConfig(PreTrainedConfig):
    r"""The fields of a quantizer, for the configuration of a model that has one.

    Args:
        quantizer_type (`"vector"`, `"group"` or `"residual"`, defaults to `"vector"`):
            One code per position, one code for each of `num_groups` slices of the channels, or `num_groups` codes
            that sum up.
        num_codes (`int`, defaults to 1024): Codes in total, over all groups. At least 1.
        num_groups (`int`, defaults to 1):
            Slices of a `"group"` quantizer (must divide the size of the vectors) or levels of a `"residual"` one.
        share_codebook (`bool`, defaults to `True`):
            Whether all groups or levels use one codebook. If not, `num_codes` is split evenly among them.
        beta (`float`):
            Weight of the codebook's term of the commitment loss, in [0, 1]; the encoder's term gets `1 - beta`.
        sync_nu (`float`): Weight of the task gradient that codes receive (synchronized commitment), at least 0.
        affine_lr (`float`): Scale of the learned affine map of the codes, at least 0; 0 turns it off.
        affine_groups (`int`): Blocks of codes with an affine map of their own; must divide the codes of a codebook.
        affine_mode (`"learned"` or `"running"`): Whether the affine map is learned or follows running statistics.
        replace_freq (`int`): Training batches without use after which a code is replaced; 0 never replaces. Large
            codebooks want more of them, enough to bring ten vectors for each code, and policy "kmeans".
        replace_policy (`"input"`, `"kmeans"` or `"busy"`): What a replaced code becomes.
        kmeans_init (`bool`): Whether the first training batch initialises the codes by k-means++.
        norm (`"l2"`, `"clip"`, `"bn"`, `"gn"`, `"in"`, `"none"`, *optional*): Normalisation of the vectors.
        cb_norm (`"l2"`, `"clip"`, `"none"`, *optional*): Normalisation of the codes.
        alternating_steps (`int`): Inner steps on the commitment loss, for the codes alone, per batch; at least 0.
        alternating_kind (`"sgd"` or `"centroid"`): Kind of the inner step.
        alternating_lr (`float`, *optional*): Size of the inner step, above 0; the default belongs to the kind.
        codebook_update (`"gradient"` or `"ema"`): What moves the codes between inner steps.
        codebook_decay (`float`, defaults to 0.99): Decay of the moving averages of `"ema"`, in [0, 1).
        gradient_estimator (`"ste"` or `"rotation"`): How the gradient passes the quantizer.
        commitment_weight (`float`, defaults to 1.0):
            Weight of the commitment loss in the model's loss, at least 0 (alpha in the paper).

    The fields `beta` to `gradient_estimator` are arguments of `VectorQuant` and default to `RECOMMENDED_QUANTIZER`.
    """

    quantizer_type: Literal["vector", "group", "residual"] = "vector"
    num_codes: int = 1024
    num_groups: int = 1
    share_codebook: bool = True
    beta: float | int = RECOMMENDED_QUANTIZER["beta"]
    sync_nu: float | int = RECOMMENDED_QUANTIZER["sync_nu"]
    affine_lr: float | int = RECOMMENDED_QUANTIZER["affine_lr"]
    affine_groups: int = RECOMMENDED_QUANTIZER["affine_groups"]
    affine_mode: Literal["learned", "running"] = RECOMMENDED_QUANTIZER["affine_mode"]
    replace_freq: int = RECOMMENDED_QUANTIZER["replace_freq"]
    replace_policy: Literal["input", "kmeans", "busy"] = RECOMMENDED_QUANTIZER["replace_policy"]
    kmeans_init: bool = RECOMMENDED_QUANTIZER["kmeans_init"]
    norm: Literal["none", "l2", "clip", "bn", "gn", "in"] | None = RECOMMENDED_QUANTIZER["norm"]
    cb_norm: Literal["none", "l2", "clip"] | None = RECOMMENDED_QUANTIZER["cb_norm"]
    alternating_steps: int = RECOMMENDED_QUANTIZER["alternating_steps"]
    alternating_kind: Literal["sgd", "centroid"] = RECOMMENDED_QUANTIZER["alternating_kind"]
    alternating_lr: float | int | None = RECOMMENDED_QUANTIZER["alternating_lr"]
    codebook_update: Literal["gradient", "ema"] = RECOMMENDED_QUANTIZER["codebook_update"]
    codebook_decay: float | int = 0.99
    gradient_estimator: Literal["ste", "rotation"] = RECOMMENDED_QUANTIZER["gradient_estimator"]

    commitment_weight: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        check_version(kwargs.pop(VERSION_KEY, None))
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the version of this code."""
        return super().to_dict() | {VERSION_KEY: __version__}

    def _quantizer_kwargs(self, feature_size: int, dim: int) -> dict[str, Any]:
        """Arguments of `VectorQuant`, or of the group or residual layer that `quantizer_type` names."""
        kwargs: dict[str, Any] = {"feature_size": feature_size, "num_codes": self.num_codes, "dim": dim}
        kwargs["codebook_decay"] = self.codebook_decay
        kwargs |= {name: getattr(self, name) for name in RECOMMENDED_QUANTIZER}
        if self.quantizer_type != "vector":
            kwargs |= {"groups": self.num_groups, "share": self.share_codebook}
        return kwargs

    def validate_quantizer(self) -> None:
        """Checks the quantizer's fields against each other; run when a config is made and when it is saved."""
        for name, minimum in (("num_codes", 1), ("num_groups", 1), ("affine_groups", 1)):
            self._require_at_least(name, minimum)
        for name in ("sync_nu", "affine_lr", "replace_freq", "alternating_steps", "commitment_weight"):
            self._require_at_least(name, 0)
        if not 0 <= self.beta <= 1:
            raise ValueError(
                f"`beta` must be in [0, 1], got {self.beta}. It weights the codebook's term of the commitment loss: "
                "1 moves only the codes, 0 only the encoder."
            )
        if not 0 <= self.codebook_decay < 1:
            raise ValueError(f"`codebook_decay` must be in [0, 1), got {self.codebook_decay}.")
        if self.codebook_update == "ema" and (self.sync_nu > 0 or self.alternating_steps > 0):
            raise ValueError(
                f'`codebook_update="ema"` needs `sync_nu=0` and `alternating_steps=0`, got {self.sync_nu} and '
                f"{self.alternating_steps}: an EMA codebook receives no gradient and already moves to its vectors."
            )
        if self.affine_mode == "running" and self.affine_groups != 1:
            raise ValueError(
                f'`affine_mode="running"` needs `affine_groups=1`, got {self.affine_groups}: running moments are '
                "those of a whole codebook."
            )
        if self.quantizer_type == "residual" and self.num_groups > 1:
            if self.affine_mode == "running" and self.share_codebook:
                raise ValueError(
                    '`affine_mode="running"` needs `share_codebook=False` in a residual quantizer: each level has '
                    "moments of its own."
                )
            if self.num_codes < self.num_groups:
                raise ValueError(
                    f"`num_codes` must be at least the number of levels, got {self.num_codes} codes and "
                    f"{self.num_groups} levels."
                )
        if self.alternating_lr is not None and not self.alternating_lr > 0:
            raise ValueError(
                f"`alternating_lr` must be above 0, or None for the default of `alternating_kind`, "
                f"got {self.alternating_lr}. `alternating_steps=0` turns the inner steps off."
            )
        if self.quantizer_type == "vector" and self.num_groups != 1:
            raise ValueError(
                f'`num_groups={self.num_groups}` needs `quantizer_type` "group" or "residual", got "vector".'
            )
        codebook_size = self.num_codes
        if not self.share_codebook:
            if self.num_codes % self.num_groups:
                raise ValueError(
                    f"`num_groups` must divide `num_codes`, which separate codebooks split among them, got "
                    f"{self.num_groups} groups and {self.num_codes} codes. `share_codebook=True` needs no split."
                )
            codebook_size //= self.num_groups
        if codebook_size % self.affine_groups:
            raise ValueError(
                f"`affine_groups` must divide the number of codes of a codebook, got {self.affine_groups} affine "
                f"groups and {codebook_size} codes."
            )

    def _require_at_least(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if not value >= minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")


__all__ = ["RECOMMENDED_QUANTIZER", "QuantizerConfig"]
