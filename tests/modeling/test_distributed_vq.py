"""Two real gloo processes hold the same codebook, to the bit, after every training step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "distributed_worker.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """Returns what rank 0 reports of each case. A hang ends after two minutes."""
    rendezvous = tmp_path_factory.mktemp("ranks") / "rendezvous"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(rendezvous)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, errors[-3000:]
    return [json.loads(line) for line in outputs[0][0].splitlines()]


def test_all_cases_ran_on_two_ranks(results):
    """Eleven layers, each built before and after the process group, five with masks, and five more checks."""
    assert len(results) == 32
    assert {result["built"] for result in results} == {"before", "after"}


def test_ranks_agree_to_the_bit(results):
    """Codebooks, affine maps, clocks, statistics and usage are equal, also with empty and unequal batches."""
    wrong = {f"{r['name']}, built {r['built']}": r["disagreements"] for r in results if r["disagreements"]}
    assert wrong == {}


def test_everything_stays_finite_and_gets_initialized(results):
    """Empty batches leave no NaN behind, and collecting over many steps ends in an initialized codebook."""
    assert all(result["finite"] for result in results)
    assert all(result.get("initialized", True) for result in results)
