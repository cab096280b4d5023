# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What cards say about quantizers that have a codebook: their settings in words, and the works these settings use."""

from typing import Any

# Beside straight-through; the names are keys of citations as well.
_ESTIMATORS = {"rotation": "rotation trick", "diveq": "DiVeQ gradients", "nsvq": "noise substitution (NSVQ)"}


def describe_codebook(kind: str, config: Any) -> str:
    """The parts of a quantizer that are on, in words.

    Args:
        kind: `"vector"`, `"group"` or `"residual"`.
        config: The configuration of a model, with the fields of [`QuantizerConfig`].
    """
    codes = {"vector": "one code", "group": f"{config.num_groups} groups", "residual": f"{config.num_groups} levels"}
    parts = [f"{codes[kind]} per position"]
    if config.num_groups > 1:
        parts.append("shared codebook" if config.share_codebook else "separate codebooks")
    if kind == "residual" and config.quantizer_dropout:
        parts.append(f"quantizer dropout {config.quantizer_dropout:g}")
    if config.codebook_update == "ema":
        parts.append("EMA codebook")
    if config.gradient_estimator in _ESTIMATORS:
        parts.append(_ESTIMATORS[config.gradient_estimator])
    if config.kmeans_init:
        parts.append("k-means++ initialization")
    if config.alternating_steps:
        parts.append(f"alternating optimization ({config.alternating_steps} {config.alternating_kind} step per batch)")
    if config.sync_nu:
        parts.append(f"synchronized commitment (nu {config.sync_nu:g})")
    if config.wasserstein_weight:
        parts.append(f"Wasserstein distance of weight {config.wasserstein_weight:g}")
    if _has_affine_map(config):
        parts.append(f"affine map of the codes ({config.affine_mode})")
    if config.replace_freq:
        parts.append(f"replacement of codes unused for {config.replace_freq} batches ({config.replace_policy})")
    if config.norm not in (None, "none") or config.cb_norm not in (None, "none"):
        parts.append(f"normalization (vectors: {config.norm or 'none'}, codes: {config.cb_norm or 'none'})")
    return ", ".join(parts)


def codebook_works(kind: str, config: Any) -> list[str]:
    """The works whose methods are on: keys of `hf_vq`'s citations. Arguments as for `describe_codebook`."""
    used = {
        "huh": config.alternating_steps > 0 or config.sync_nu > 0 or _has_affine_map(config),
        "oord": True,
        "ema": config.codebook_update == "ema",
        "wasserstein": config.wasserstein_weight > 0,
        "residual": kind == "residual",
        **{name: config.gradient_estimator == name for name in _ESTIMATORS},
        "kmeans": config.kmeans_init or (config.replace_freq > 0 and config.replace_policy == "kmeans"),
        "l2": "l2" in (config.norm, config.cb_norm),
    }
    return [work for work, is_used in used.items() if is_used]


def _has_affine_map(config: Any) -> bool:
    return config.affine_lr > 0 or config.affine_mode == "running"


__all__ = ["codebook_works", "describe_codebook"]
