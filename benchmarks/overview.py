"""The picture at the top of the README: every method at the settings that were chosen for it on other photographs.

    python benchmarks/overview.py

It draws what `quality.py` measured (results/quality_*.json) and trains nothing.
"""

from __future__ import annotations

from pathlib import Path

from dot_plot import Panel, dot_plot
from quality import FLOOR, RESULTS, chosen
from quality_candidates import CANDIDATES
from run_records import load_records

PICTURE = Path(__file__).parents[1] / "docs" / "overview.png"
DEFAULT = "full method, 4-d codes, centroid step 0.3"
# Row of the picture -> method of the candidates; None for a row that was not chosen but is the package's default.
ROWS: dict[str, str | None] = {
    "hf_vq, default settings": None,
    "hf_vq, chosen settings": "full method",
    "plain VQ, 3-d codes": "plain VQ",
    "FSQ": "FSQ",
    "SimVQ": "SimVQ",
    "EMA codebook": "EMA",
    "no quantization": FLOOR,
}
OURS = tuple(row for row in ROWS if row.startswith("hf_vq"))


def panels(data: str) -> list[Panel]:
    """Error and use of the codes on the held-out images of a data set, of every seed that was run at 1,500 steps."""
    best = {
        method: next(iter(chosen(RESULTS / "quality_tuning.json", {method: CANDIDATES[method]})))
        for method in ROWS.values()
        if method not in (None, FLOOR)
    }
    records = [record for record in load_records(RESULTS / f"quality_{data}.json") if record["steps"] == 1500]

    def values(key: str, scale: float) -> dict[str, list[float]]:
        names = {row: DEFAULT if method is None else best.get(method, method) for row, method in ROWS.items()}
        return {row: [scale * r[key] for r in records if r["row"] == name] for row, name in names.items()}

    error, usage = values("mse", 1e3), values("usage", 100)
    usage[FLOOR] = []
    return [
        Panel(f"{data}: mean squared error x 1e-3", error, reference=FLOOR, strong=OURS),
        Panel(f"{data}: codes in use, %", usage, strong=OURS),
    ]


def main() -> None:
    dot_plot([panels("photographs"), panels("emoji")]).save(PICTURE)


if __name__ == "__main__":
    main()
