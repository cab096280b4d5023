"""Six candidates of each kind of quantizer, for each size of the codebook. All are layers of this package."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

from hf_vq import RECOMMENDED_QUANTIZER


@dataclass
class Candidate:
    """Settings of one row.

    Args:
        fields: Fields of `VQConfig` that name the quantizer, beside `num_codes`.
        embed_dim: Dimensions of the vectors.
        commitment_weight: Weight of the quantizer's loss.
        knobs: What was varied, in words.
    """

    fields: dict[str, Any]
    embed_dim: int
    commitment_weight: float = 1.0
    knobs: str = ""
    num_codes: int | None = field(default=None)


# A learned codebook without any part of the method.
PLAIN: dict[str, Any] = {
    **dict.fromkeys(("sync_nu", "affine_lr"), 0.0),
    **dict.fromkeys(("replace_freq", "alternating_steps"), 0),
    "beta": 0.95,
    "kmeans_init": False,
}
EMA = {**PLAIN, "beta": 0.0, "codebook_update": "ema", "kmeans_init": True, "replace_freq": 20}
KEPT = {**PLAIN, "kmeans_init": True, "replace_freq": 20}  # in use, for gradients that move codes
LEVELS = {
    1024: ([32, 32], [64, 16], [10, 10, 10], [16, 8, 8], [8, 5, 5, 5], [4, 4, 4, 4, 4]),
    16384: ([128, 128], [32, 32, 16], [25, 25, 25], [16, 16, 8, 8], [8, 8, 8, 6, 5], [7, 7, 7, 7, 7]),
    65536: ([256, 256], [40, 40, 40], [64, 32, 32], [16, 16, 16, 16], [9, 9, 9, 9, 9], [8, 8, 8, 5, 5, 5]),
}


def candidates(num_codes: int) -> dict[str, list[Candidate]]:
    """Kinds and their candidates."""
    bits = num_codes.bit_length() - 1
    late = {"replace_freq": max(20, 10 * num_codes // 2048), "replace_policy": "kmeans"}
    full = {**RECOMMENDED_QUANTIZER, **(late if num_codes > 4096 else {})}
    return {
        "full method": grid(full, (3, 4), (1.0, 0.3, 0.1)),
        "full method with a Wasserstein term": grid(full, (3, 4, 8), (0.3,), wasserstein_weight=(0.1, 1.0)),
        "full method without synchronized commitment": grid({**full, "sync_nu": 0.0}, (3, 4), (1.0, 0.3, 0.1)),
        "plain VQ": grid(PLAIN, (3, 4), (1.0, 0.3, 0.1)),
        "plain VQ with a Wasserstein term": grid(PLAIN, (3, 4, 8), (0.3,), wasserstein_weight=(0.1, 1.0)),
        "EMA": grid(EMA, (3, 4), (1.0, 0.25, 0.1)),
        "EMA, rotation trick": grid({**EMA, "gradient_estimator": "rotation"}, (3, 4), (1.0, 0.25, 0.1)),
        "DiVeQ": grid({**KEPT, "gradient_estimator": "diveq"}, (3, 4, 8), (0.0, 0.1)),
        "DiVeQ with alternating steps": grid(
            {**full, "sync_nu": 0.0, "gradient_estimator": "diveq"}, (3, 4, 8), (0.0, 0.1)
        ),
        "NSVQ": grid({**KEPT, "gradient_estimator": "nsvq"}, (3, 4, 8), (0.0, 0.1)),
        "SimVQ": grid({"quantizer_type": "simvq"}, (3, 8, 32), (1.0, 0.25)),
        "IBQ": grid({"quantizer_type": "ibq"}, (4, 8, 32), (1.0,), entropy_weight=(0.1, 0.01)),
        "LFQ": grid({"quantizer_type": "lfq"}, (bits,), (1.0, 0.1), entropy_weight=(0.1, 0.03, 0.01)),
        "BSQ": grid({"quantizer_type": "bsq"}, (bits,), (1.0, 0.1), entropy_weight=(0.1, 0.03, 0.01)),
        "FSQ": scalars(num_codes, "tanh"),
        "iFSQ": scalars(num_codes, "sigmoid"),
    }


def grid(
    fields: dict[str, Any], dims: tuple[int, ...], weights: tuple[float, ...], **varied: tuple[Any, ...]
) -> list[Candidate]:
    """All combinations of dimensions, loss weights and values of further fields."""
    found = []
    for dim, weight, *values in itertools.product(dims, weights, *varied.values()):
        own = dict(zip(varied, values, strict=True))
        words = [f"{dim}-d", f"weight {weight:g}", *(f"{name} {value:g}" for name, value in own.items())]
        found.append(Candidate({**fields, **own}, dim, weight, ", ".join(words)))
    return found


def scalars(num_codes: int, activation: str) -> list[Candidate]:
    """Finite scalar quantization with about as many codes."""
    fields = {"quantizer_type": "fsq", "level_activation": activation}
    return [
        Candidate({**fields, "levels": levels}, len(levels), 0.0, str(levels), math.prod(levels))
        for levels in LEVELS[num_codes]
    ]
