"""The rows of the quality tables: candidates for tuning each method, and rows with fixed settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import autoencoder
from torch import nn

from hf_vq import RECOMMENDED_QUANTIZER


@dataclass
class Row:
    """A line of the table.

    Args:
        quantizer: Arguments of `VectorQuant`, or a function from the dimension of the codes to another
            library's layer.
        commitment_weight: Weight of the quantizer's loss.
        embed_dim: Dimension of the codes.
        num_codes: Number of codes.
        yardstick: Whether to measure how many codes k-means would use, too.
    """

    quantizer: dict[str, Any] | Callable[[int], nn.Module]
    commitment_weight: float
    embed_dim: int = 64
    num_codes: int = autoencoder.NUM_CODES
    yardstick: bool = False


def ema(commitment: float, rotation_trick: bool = False) -> Callable[[int], nn.Module]:
    def make(dim: int) -> nn.Module:
        from vector_quantize_pytorch import VectorQuantize

        return VectorQuantize(
            dim=dim,
            codebook_size=autoencoder.NUM_CODES,
            kmeans_init=True,
            threshold_ema_dead_code=2,
            rotation_trick=rotation_trick,
            commitment_weight=commitment,
        )

    return make


def sim_vq(dim: int) -> nn.Module:
    from vector_quantize_pytorch import SimVQ

    return SimVQ(dim=dim, codebook_size=autoencoder.NUM_CODES)


def fsq(levels: list[int]) -> Callable[[int], nn.Module]:
    def make(dim: int) -> nn.Module:
        from vector_quantize_pytorch import FSQ

        return FSQ(dim=dim, levels=levels)

    return make


FULL = RECOMMENDED_QUANTIZER
PLAIN: dict[str, Any] = {"beta": 0.95}
OTHERS = "(vector-quantize-pytorch)"

# Each method has six candidates: three dimensions of the codes times two values of the setting that matters most.
CANDIDATES: dict[str, dict[str, Row]] = {
    "full method": {
        f"full method, {dim}-d codes, {kind} step {rate}": Row(
            {**FULL, "alternating_kind": kind, "alternating_lr": rate}, 1.0, dim, yardstick=True
        )
        for dim in (3, 4, 8)
        for kind, rate in (("centroid", 0.3), ("sgd", 50.0))
    },
    "FSQ": {
        f"FSQ {levels} {OTHERS}": Row(fsq(levels), 1.0, num_codes=num_codes)
        for levels, num_codes in (
            ([8, 5, 5, 5], 1000),
            ([4, 4, 4, 4, 4], 1024),
            ([16, 8, 8], 1024),
            ([10, 10, 10], 1000),
            ([32, 32], 1024),
            ([64, 16], 1024),
        )
    },
    "EMA": {
        f"EMA, {dim}-d codes, commitment {weight} {OTHERS}": Row(ema(weight), 1.0, dim)
        for dim in (3, 4, 8)
        for weight in (0.25, 1.0)
    },
    "rotation trick": {
        f"rotation trick, {dim}-d codes, commitment {weight} {OTHERS}": Row(ema(weight, True), 1.0, dim)
        for dim in (3, 4, 8)
        for weight in (0.25, 1.0)
    },
    "SimVQ": {
        f"SimVQ, {dim}-d codes, loss weight {weight:g} {OTHERS}": Row(sim_vq, weight, dim)
        for dim in (3, 8, 64)
        for weight in (1.0, 0.25)
    },
    "plain VQ": {
        f"plain VQ, {dim}-d codes, alpha {alpha:g}": Row(PLAIN, alpha, dim)
        for dim in (3, 4, 8)
        for alpha in (10.0, 1.0)
    },
}

PARTS: dict[str, Any] = {"affine_lr": 2.0, "sync_nu": 0.2, "replace_freq": 20}
INNER: dict[str, Any] = {"beta": 1.0, "alternating_steps": 1}
FIXED: dict[str, Row] = CANDIDATES["full method"] | {
    f"FSQ [8, 5, 5, 5] {OTHERS}": CANDIDATES["FSQ"][f"FSQ [8, 5, 5, 5] {OTHERS}"],
    "64-d codes: full method": Row(FULL, 1.0),
    f"64-d codes: EMA, commitment 0.25 {OTHERS}": Row(ema(0.25), 1.0),
    f"64-d codes: rotation trick, commitment 0.25 {OTHERS}": Row(ema(0.25, True), 1.0),
    "64-d codes: plain VQ": Row(PLAIN, 10.0),
    "64-d codes: plain + affine": Row({**PLAIN, "affine_lr": 2.0}, 2.0),
    "64-d codes: plain + synchronized": Row({**PLAIN, "sync_nu": 0.2}, 10.0),
    "64-d codes: plain + replacement": Row({**PLAIN, "replace_freq": 20}, 10.0),
    "64-d codes: plain + alternating, centroid": Row({**INNER, "alternating_kind": "centroid"}, 0.0),
    "64-d codes: plain + alternating, SGD": Row({**INNER, "alternating_kind": "sgd"}, 0.0),
    "64-d codes: affine + synchronized + replacement": Row({**PLAIN, **PARTS}, 2.0),
    "64-d codes: all of these, centroid, with k-means": Row({**INNER, **PARTS, "kmeans_init": True}, 0.0),
    "no quantization": Row(PLAIN, 0.0),
}
