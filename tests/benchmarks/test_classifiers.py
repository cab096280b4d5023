"""The benchmark of classifiers: what it chooses, what it tabulates, that it goes on."""

import statistics
from collections.abc import Callable

import pytest
from PIL import Image

METHODS = ("no quantization", "base", "all four")


@pytest.fixture
def classifiers(benchmark: Callable, monkeypatch: pytest.MonkeyPatch):
    """The benchmark with three methods and two weights, on a few emoji."""
    found = benchmark("classifiers")
    module = found.module
    task = module.DATA["emoji"]()
    few = task._replace(train=task.train.select(range(64)), test=task.test.select(range(40)))
    monkeypatch.setitem(module.DATA, "emoji", lambda: few)
    monkeypatch.setattr(module, "METHODS", {name: module.METHODS[name] for name in METHODS})
    monkeypatch.setattr(module, "COMMITMENT_WEIGHTS", (0.25, 5.0))
    return found


def test_the_table_has_the_best_weights_and_the_means_over_the_seeds(
    classifiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the file holds is not run again."""
    words = ("--data", "emoji", "--networks", "small AlexNet", "--steps", "3", "--device", "cpu")
    classifiers(*words, "--seeds", "0", "1")

    written, lines = classifiers.written("classifiers"), classifiers.lines("classifiers")
    records = written["records"]
    tuning = [record for record in records if record["tuning"]]
    final = [record for record in records if not record["tuning"]]
    assert [(r["method"], r["commitment_weight"], r["steps"]) for r in tuning] == [
        (method, weight, 1) for method in METHODS[1:] for weight in (0.25, 5.0)
    ]
    assert [(r["seed"], r["method"], r["steps"]) for r in final] == [(seed, m, 3) for seed in (0, 1) for m in METHODS]
    assert {record["num_images"] for record in final} == {40} and {record["num_images"] for record in tuning} == {8}
    for record in final:
        if record["method"] == "no quantization":
            assert "perplexity" not in record
            continue
        best = max(
            (trial for trial in tuning if trial["method"] == record["method"]),
            key=lambda trial: (trial["accuracy"], -trial["cross_entropy"]),
        )
        assert record["commitment_weight"] == best["commitment_weight"]
    accuracies = [100 * record["accuracy"] for record in final if record["method"] == "no quantization"]
    assert lines["no quantization"] == [f"{statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f}"]
    assert "/" in lines["all four"][0] and lines["all four"][0].count("±") == 2
    assert written["protocol"]["methods"]["all four"]["replace_freq"] == 20
    text = (classifiers.results / "classifiers.md").read_text()
    assert "3 steps of batch 32" in text and "40 test images" in text and "Seeds: small AlexNet 0, 1." in text

    with Image.open(classifiers.results / "classifiers.png") as picture:
        assert picture.width > 400

    monkeypatch.setattr(classifiers.module, "run", lambda *_: pytest.fail("ran again"))
    classifiers(*words, "--seeds", "0", "1")
    assert classifiers.written("classifiers") == written


def test_of_equal_accuracies_the_lower_cross_entropy_wins(classifiers) -> None:
    trial = {"method": "base", "network": "AlexNet", "data": "emoji", "steps": 7, "tuning": True, "accuracy": 0.5}
    trials = [
        {**trial, "commitment_weight": 0.25, "cross_entropy": 1.5},
        {**trial, "commitment_weight": 1.0, "cross_entropy": 1.2},
        {**trial, "commitment_weight": 5.0, "cross_entropy": 1.3},
        {**trial, "commitment_weight": 9.0, "cross_entropy": 0.1, "steps": 8},
    ]
    assert classifiers.module.best_weight(trials, "base", "AlexNet", "emoji", 7) == 1.0
