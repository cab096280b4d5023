"""The rows of the tables of large codebooks: every method for the table, and settings to try."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

SIZES = (1024, 16384, 256, 4096, 65536)  # the most interesting sizes run first
VECTORS = 32 * 64  # in a training batch
FLOOR = "no quantization"


@dataclass
class Row:
    """A line of the tables.

    Args:
        quantizer: The arguments that differ from the full method, or a function that makes another library's layer.
        embed_dim: Dimension of the codes. With 64 the layer has its own projections.
        commitment_weight: Weight of the quantizer's loss.
        num_codes: The layer's number of codes, if it cannot have the number asked for.
        yardstick: Whether to measure what k-means would use, too.
    """

    quantizer: dict[str, Any] | Callable[[], nn.Module]
    embed_dim: int
    commitment_weight: float = 1.0
    num_codes: int | None = None
    yardstick: bool = False


def ema(dim: int, num_codes: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from vector_quantize_pytorch import VectorQuantize

        return VectorQuantize(
            dim=dim, codebook_size=num_codes, kmeans_init=True, threshold_ema_dead_code=2, commitment_weight=0.25
        )

    return make


def sim_vq(dim: int, num_codes: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from vector_quantize_pytorch import SimVQ

        return SimVQ(dim=dim, codebook_size=num_codes)

    return make


def fsq(levels: list[int]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from vector_quantize_pytorch import FSQ

        return FSQ(dim=64, levels=levels)

    return make


def lfq(num_codes: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from vector_quantize_pytorch import LFQ

        # The entropies cost vectors x codes, so with more codes they take fewer vectors.
        return LFQ(dim=64, codebook_size=num_codes, frac_per_sample_entropy=min(1.0, 1024 / num_codes))

    return make


LFQ_WEIGHT = 0.1  # the trial with the lowest error that still keeps the codes in use
# Few dimensions, which did best in quality.py, then the choice of FSQ's authors.
FSQ_LEVELS: dict[int, tuple[list[int], ...]] = {
    256: ([16, 16], [8, 6, 5]),
    1024: ([32, 32], [8, 5, 5, 5]),
    4096: ([16, 16, 16], [7, 5, 5, 5, 5]),
    16384: ([32, 32, 16], [8, 8, 8, 6, 5]),
    65536: ([40, 40, 40], [8, 8, 8, 5, 5, 5]),
}


def table(num_codes: int) -> dict[str, Row]:
    """Every method with the settings that quality.py chose for it."""
    few, usual = FSQ_LEVELS[num_codes]
    rows = {
        "full method, 4-d": Row({}, 4, yardstick=True),
        f"FSQ {few}": Row(fsq(few), 64, num_codes=math.prod(few)),
        f"FSQ {usual}": Row(fsq(usual), 64, num_codes=math.prod(usual)),
        "LFQ": Row(lfq(num_codes), 64, LFQ_WEIGHT),
        "SimVQ, 3-d": Row(sim_vq(3, num_codes), 3, 0.25),
        "EMA, 4-d": Row(ema(4, num_codes), 4),
    }
    if num_codes > 4096:  # 20 batches hold fewer than 10 vectors for each code
        rows["full method, 4-d, later k-means replacement"] = Row(later(num_codes), 4)
    if num_codes == min(SIZES):
        rows[FLOOR] = Row({}, 4)
    return rows


def later(num_codes: int) -> dict[str, Any]:
    """Arguments for a replacement that waits until there were ten vectors for each code."""
    return {"replace_freq": 10 * num_codes // VECTORS, "replace_policy": "kmeans"}


def trials(num_codes: int) -> dict[str, Row]:
    """What quality.py did not choose: settings of the full method and weights of LFQ's loss."""
    late = later(num_codes)
    settings: dict[str, tuple[int, dict[str, Any]]] = {
        **{f"{dim}-d": (dim, {}) for dim in (4, 6, 8)},
        "4-d, later replacement": (4, {"replace_freq": late["replace_freq"]}),
        **{f"{dim}-d, later k-means replacement": (dim, late) for dim in (4, 5, 6, 8)},
        "4-d, later k-means replacement, SGD step": (4, {**late, "alternating_kind": "sgd"}),
        "4-d, SGD step": (4, {"alternating_kind": "sgd"}),
        "4-d, centroid rate 0.1": (4, {"alternating_lr": 0.1}),
        "4-d, later replacement by busy codes": (4, {**late, "replace_policy": "busy"}),
        "4-d, affine_lr 2": (4, {"affine_lr": 2.0}),
        "4-d, moments matched by a running affine map": (4, {"affine_mode": "running"}),
        "4-d, unit norm": (4, {"norm": "l2", "cb_norm": "l2"}),
        "4-d, EMA update": (4, {"codebook_update": "ema", "alternating_steps": 0, "sync_nu": 0.0}),
    }
    rows = {f"full method, {name}": Row(quantizer, dim) for name, (dim, quantizer) in settings.items()}
    return rows | {f"LFQ, loss weight {weight:g}": Row(lfq(num_codes), 64, weight) for weight in (1.0, 0.1, 0.01)}
