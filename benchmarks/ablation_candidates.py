"""The rows of the ablation's tables (ablation.py): the paper's parts one by one, and changes to our recipe."""

from __future__ import annotations

from typing import Any

from quality_candidates import FULL, PLAIN, Row

FULL_METHOD = "full method"
RECIPE_DIM = 4  # dimension of the recipes' codes; in the paper's table it is the network's 64

# Each row of the paper's table has ten candidates: two values of the part's own setting times five of alpha. The base
# has ten values of alpha. "all" takes the setting of each part that won alone, but tries both kinds of inner steps
# again. With alpha = 0 the codes learn only from inner steps (as in the reference code) or replacement, or not at all.
ALPHAS = (1.0, 0.25, 0.05, 0.01, 0.0)
BASE_ALPHAS = (10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.05, 0.01, 0.002, 0.0)
WON_ALONE = {"affine_lr": 2.0, "sync_nu": 0.2, "replace_freq": 5}

_OWN: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "affine": [(f"affine_lr {rate:g}", {"affine_lr": rate}) for rate in (2.0, 10.0)],
    "synchronized": [(f"nu {nu:g}", {"sync_nu": nu}) for nu in (0.2, 1.0)],
    "alternating": [
        (f"{kind} steps", {"alternating_steps": 1, "alternating_kind": kind}) for kind in ("sgd", "centroid")
    ],
    "replacement": [(f"replace_freq {freq}", {"replace_freq": freq}) for freq in (20, 5)],
}
_OWN["all"] = [(name, {**WON_ALONE, **inner}) for name, inner in _OWN["alternating"]]
PAPER: dict[str, dict[str, Row]] = {"base": {f"base: alpha {alpha:g}": Row(PLAIN, alpha) for alpha in BASE_ALPHAS}} | {
    part: {
        f"{part}: {name}, alpha {alpha:g}": Row({**PLAIN, **setting}, alpha)
        for name, setting in settings
        for alpha in ALPHAS
    }
    for part, settings in _OWN.items()
}


def _changed(changes: dict[str, dict[str, Any]]) -> dict[str, Row]:
    """The full method of our recipe, then one row for each change of its arguments."""
    rows = {name: Row({**FULL, **change}, 1.0, RECIPE_DIM) for name, change in changes.items()}
    return {FULL_METHOD: Row(FULL, 1.0, RECIPE_DIM), **rows}


LEAVE_ONE_OUT = _changed(
    {
        "without synchronized steps": {"sync_nu": 0.0},
        "without alternating steps": {"alternating_steps": 0},
        "without replacement": {"replace_freq": 0},
        "without k-means initialization": {"kmeans_init": False},
        "without the encoder's commitment": {"beta": 1.0},
        "with the affine map": {"affine_lr": 2.0},
        "none of them": {
            "sync_nu": 0.0,
            "alternating_steps": 0,
            "replace_freq": 0,
            "kmeans_init": False,
        },
    }
)

KNOBS = _changed(
    {f"beta {beta:g}": {"beta": beta} for beta in (0.9, 0.95, 0.995, 1.0)}
    | {f"nu {nu:g}": {"sync_nu": nu} for nu in (0.0, 0.05, 1.0, 2.0)}
    | {f"affine_lr {rate:g}": {"affine_lr": rate} for rate in (0.5, 2.0, 10.0)}
    | {f"affine_lr 2, {n} groups": {"affine_lr": 2.0, "affine_groups": n} for n in (4, 32)}
    | {"running affine": {"affine_mode": "running"}}
    | {"no inner steps": {"alternating_steps": 0}}
    | {f"{steps} centroid steps": {"alternating_steps": steps} for steps in (2, 4, 8)}
    | {f"centroid rate {rate:g}": {"alternating_lr": rate} for rate in (0.1, 1.0)}
    | {"1 SGD step": {"alternating_kind": "sgd"}}
    | {f"{steps} SGD steps": {"alternating_steps": steps, "alternating_kind": "sgd"} for steps in (2, 4, 8)}
    | {f"replace_freq {freq}": {"replace_freq": freq} for freq in (2, 5, 100)}
    | {f"replace_freq 20, {policy}": {"replace_policy": policy} for policy in ("kmeans", "busy")}
    | {"unit norm of inputs and codes": {"norm": "l2", "cb_norm": "l2"}}
) | {f"{dim}-d codes": Row(FULL, 1.0, dim) for dim in (3, 2)}
