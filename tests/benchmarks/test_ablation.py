"""The ablation and what it shares with the quality tables: choosing settings, going on, tables with their protocol."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

TRIALS = Path(__file__).parents[2] / "benchmarks" / "results" / "ablation_tuning.json"
FEW = 64  # images of each split


@pytest.fixture
def ablation(benchmark: Callable, monkeypatch: pytest.MonkeyPatch):
    """The benchmark on a few emoji, after trials in which the second candidate of each row did best."""
    found = benchmark("ablation")
    quality = benchmark("quality").module
    train, test = quality.autoencoder.emoji()
    monkeypatch.setitem(quality.autoencoder.DATA, "emoji", lambda: (train[:FEW], test[:FEW]))
    tuning = found.results / "ablation_tuning.json"
    monkeypatch.setattr(found.module, "TUNING", tuning)
    trials = [
        {"row": name, "mse": 1.0 if place == 1 else 2.0}
        for candidates in found.module.PAPER.values()
        for place, name in enumerate(candidates)
    ]
    tuning.write_text(json.dumps({"protocol": {}, "records": trials}))
    return found


def test_every_row_has_as_many_candidates(ablation) -> None:
    assert {len(candidates) for candidates in ablation.module.PAPER.values()} == {10}
    assert set(ablation.module.PAPER) == {"base", "affine", "synchronized", "alternating", "replacement", "all"}
    every = ablation.module.PAPER["all"].values()
    for part, setting in (("affine", "affine_lr"), ("synchronized", "sync_nu"), ("replacement", "replace_freq")):
        tried = {row.quantizer[setting] for row in ablation.module.PAPER[part].values()}
        assert {row.quantizer[setting] for row in every} < tried


def test_all_parts_together_have_the_settings_that_won_alone(benchmark: Callable) -> None:
    """By the trials that the results hold; others would want `all` tried anew."""
    ablation = benchmark("ablation").module
    winners = ablation.chosen(TRIALS, ablation.PAPER)
    settings = {name.split(":")[0]: row.quantizer for name, row in winners.items()}

    for part, setting in (("affine", "affine_lr"), ("synchronized", "sync_nu"), ("replacement", "replace_freq")):
        assert settings["all"][setting] == settings[part][setting], part


def test_the_table_has_the_best_candidates_their_means_and_its_protocol(ablation) -> None:
    rows = ("base: alpha 5", "replacement: replace_freq 20, alpha 0.25")
    words = ("--part", "table", "--data", "emoji", "--steps", "2", "--rows", *rows, "--seeds", "0", "1")
    ablation(*words)

    written, lines = ablation.written("ablation_table_emoji"), ablation.lines("ablation_table_emoji")
    records = written["records"]
    assert [(record["row"], record["seed"]) for record in records] == [(row, seed) for seed in (0, 1) for row in rows]
    for row in rows:
        errors = [1e3 * record["mse"] for record in records if record["row"] == row]
        assert lines[row][0] == f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f}"
        assert lines[row][-1] == "0, 1"
    settings = written["protocol"]["rows"]
    assert settings[rows[0]]["commitment_weight"] == 5 and settings[rows[1]]["quantizer"]["replace_freq"] == 20
    with Image.open(ablation.results / "ablation.png") as picture:
        assert picture.width > 600
    assert written["protocol"]["steps"] == 2 and "shipped sample" in written["protocol"]["data"]


def test_knobs_are_drawn_as_differences_from_the_full_method_of_their_seed(ablation) -> None:
    runs = [("nu 1", 0, 0.5, 0.1), ("full method", 0, 0.4, 0.2), ("full method", 1, 0.2, 0.3), ("nu 1", 1, 0.5, 0.4)]
    names = ("row", "seed", "mse", "usage")
    error, usage = ablation.module.knob_panels([dict(zip(names, run, strict=True)) for run in runs])

    assert list(error.values) == ["full method", "nu 1"]
    assert error.values["full method"] == [0, 0] and error.values["nu 1"] == pytest.approx([100, 300])
    assert usage.values["nu 1"] == pytest.approx([10, 40])


def test_what_a_file_holds_is_not_run_again(ablation, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--part", "table", "--data", "emoji", "--steps", "1", "--rows", "base: alpha 5", "--seeds")
    ablation(*words, "0")
    first = ablation.written("ablation_table_emoji")["records"][0]
    seeds = []

    def run(name: str, row: Any, data: str, seed: int, steps: int, device: str) -> dict[str, Any]:
        seeds.append(seed)
        return {**first, "seed": seed}

    monkeypatch.setitem(ablation.module.fill.__globals__, "run", run)
    ablation(*words, "0", "1")

    assert seeds == [1]
    assert ablation.written("ablation_table_emoji")["records"] == [first, {**first, "seed": 1}]


def test_a_table_wants_all_trials_first(ablation) -> None:
    tuning = ablation.module.TUNING
    content = json.loads(tuning.read_text())
    content["records"].pop()
    tuning.write_text(json.dumps(content))

    with pytest.raises(SystemExit, match=r"holds 9 of 10 trials of all: tune first"):
        ablation("--part", "table", "--data", "emoji", "--steps", "1")


def test_an_unknown_row_of_the_quality_table_is_told(benchmark: Callable) -> None:
    quality = benchmark("quality")
    trials = [{"row": name, "mse": 1.0} for rows in quality.module.CANDIDATES.values() for name in rows]
    (quality.results / "quality_tuning.json").write_text(json.dumps({"protocol": {}, "records": trials}))

    with pytest.raises(SystemExit, match="no row 'best'; there are: "):
        quality("--rows", "best", "--data", "emoji")
