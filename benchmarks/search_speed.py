"""Time of the nearest-code search for sizes of codebooks: stored scores, the compiled loop, and others.

    make bench-scale

The plain loop is `(|c|^2 / 2 - z.c).argmin(1)` under `torch.compile`, which decides near ties by rounding.
`nearest_code` gives the ids of the search by stored scores, which the table checks. The k-d tree is scipy's, built
anew for each call as codes move in training; it does not decide ties.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from timing import timed_rounds

from hf_vq.modeling import fused_search_vq
from hf_vq.modeling.nearest_vq import nearest_code

RESULTS = Path(__file__).parent / "results"
SIZES = [
    (4, 256),
    (4, 1024),
    (4, 16384),
    (8, 256),
    (8, 1024),
    (8, 16384),
    (12, 1024),
    (16, 1024),
    (16, 16384),
    (32, 1024),
]


def plain_loop(vectors: torch.Tensor, codes: torch.Tensor, half_norms: torch.Tensor) -> torch.Tensor:
    """Looks for the least score, as one loop once it is compiled."""
    scores = half_norms
    for number in range(codes.shape[0]):
        scores = scores - vectors[:, number, None] * codes[number]
    return scores.argmin(1)


def measure(dim: int, num_codes: int, num_vectors: int, rounds: int) -> dict[str, float]:
    """Least milliseconds of each search, and the share of equal ids."""
    torch.manual_seed(0)
    vectors, codes = torch.randn(num_vectors, dim), torch.randn(num_codes, dim)

    def stored() -> torch.Tensor:
        os.environ["HF_VQ_COMPILE_SEARCH"] = "0"
        try:
            return nearest_code(vectors, codes)
        finally:
            del os.environ["HF_VQ_COMPILE_SEARCH"]

    torch._dynamo.reset()
    compiled, by_dimension, half_norms = torch.compile(plain_loop), codes.T.contiguous(), codes.square().sum(1) / 2
    tasks = {
        "stored scores": stored,
        "nearest_code": lambda: nearest_code(vectors, codes),
        "plain loop": lambda: compiled(vectors, by_dimension, half_norms),
    }
    try:
        from scipy.spatial import cKDTree
    except ImportError:
        pass
    else:
        points = (vectors.numpy(), codes.numpy())
        tasks["k-d tree"] = lambda: cKDTree(points[1]).query(points[0], workers=torch.get_num_threads())
    best = {name: min(times) for name, times in timed_rounds(tasks, rounds, "cpu").items()}
    return best | {"equal": (stored() == nearest_code(vectors, codes)).double().mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vectors", type=int, default=16384)
    options = parser.parse_args()
    fused_search_vq._WORK = 0  # compile at once
    fused_search_vq._MAX_DIM = 10**9  # also beyond the sizes that are chosen, to show where it no longer pays
    names = ["stored scores", "nearest_code", "plain loop", "k-d tree"]
    lines = [
        f"{options.vectors} vectors, best of {options.rounds} rounds in turns, {torch.get_num_threads()} CPU threads, "
        f"torch {torch.__version__}. Milliseconds. `nearest_code` is compiled here for every size.",
        "",
        "| dimension | codes | " + " | ".join(names) + " | ids equal | nearest_code / plain loop |",
        "|---|---|" + "---|" * (len(names) + 2),
    ]
    rows = []
    for dim, num_codes in SIZES:
        row = measure(dim, num_codes, options.vectors, options.rounds)
        rows.append({"dim": dim, "codes": num_codes, **row})
        cells = [f"{row[name]:.1f}" if name in row else "" for name in names]
        ratio = row["nearest_code"] / row["plain loop"]
        lines.append(f"| {dim} | {num_codes} | {' | '.join(cells)} | {row['equal']:.0%} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    (RESULTS / "search_speed.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "search_speed.json").write_text(json.dumps({"vectors": options.vectors, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
