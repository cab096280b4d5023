"""The benchmark of all kinds of quantizers: its candidates make sense, and its table says what its records say."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_vq import VQConfig
from hf_vq.metrics.features import ShrunkPixels
from hf_vq.modeling.checks_quantizer_vq import QUANTIZER_TYPES


@pytest.fixture
def modules(benchmark: Callable) -> tuple[Any, Any]:
    """The benchmark and its candidates."""
    return benchmark("quantizers").module, importlib.import_module("quantizers_candidates")


@pytest.mark.parametrize("num_codes", [1024, 16384, 65536])
def test_every_kind_has_six_valid_candidates(modules, num_codes: int) -> None:
    """Their configurations are accepted, differ, and have about as many codes."""
    found = modules[1].candidates(num_codes)
    types = set()
    for kind, rows in found.items():
        assert len(rows) == 6 and len({row.knobs for row in rows}) == 6, kind
        for row in rows:
            fields = {"num_codes": row.num_codes or num_codes, "embed_dim": row.embed_dim, **row.fields}
            config = VQConfig(architecture="sqvae", image_size=32, **fields)
            assert 0.9 < config.num_codes / num_codes < 1.1, (kind, row.knobs)
            types.add(config.quantizer_type)
    assert types == set(QUANTIZER_TYPES) - {"group", "residual", "residual_fsq", "residual_lfq"}


def record(kind: str, mse: float, seed: int, **changes: Any) -> dict[str, Any]:
    fixed = {"part": "table", "data": "emoji", "num_codes": 1024, "steps": 1500, "knobs": "3-d", "psnr": 20.0}
    measured = {
        "network_distance": 0.5,
        "usage": 0.9,
        "perplexity": 700.0,
        "cpu_milliseconds": 80.0,
        "memory_mb": 600.0,
    }
    return {**fixed, **measured, "kind": kind, "mse": mse, "seed": seed, **changes}


def test_the_table_stars_what_is_behind_beyond_the_noise(modules) -> None:
    """Rows come in the order of their errors; a close one has no star, and neither has one seed."""
    records = [record("far", 8e-3 + 1e-4 * seed, seed) for seed in range(3)]
    records += [record("first", 5e-3 + 1e-4 * seed, seed) for seed in range(3)]
    records += [record("close", 5.05e-3 + 1e-4 * seed, seed) for seed in range(3)]
    records += [record("once", 9e-3, 0), record("no quantization", 4e-3, 0), record("trial", 1e-3, 0, part="tuning")]
    lines = modules[0].table(records, "emoji", 1500).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["first", "close", "far", "once", "no quantization"]
    assert [row[2].endswith("*") for row in rows] == [False, False, True, False, False]
    assert rows[0][2] == "5.10 ± 0.10" and rows[0][5] == "90.0 ± 0.0%" and rows[4][5] == ""


def test_the_best_candidate_is_chosen_when_all_were_tried(modules) -> None:
    """One that did not stay finite never is, nor one that is no candidate any more."""
    benchmark, rows = modules[0], modules[1].candidates(1024)["SimVQ"]
    errors = [5.0, float("nan"), 3.0, 4.0, 6.0, 7.0]
    records = [
        record("SimVQ", error, 0, part="tuning", knobs=row.knobs) for row, error in zip(rows, errors, strict=True)
    ]
    assert benchmark.chosen(records[:5], "SimVQ", 1024) is None
    assert benchmark.chosen(records, "SimVQ", 1024).knobs == rows[2].knobs
    former = record("SimVQ", 1.0, 0, part="tuning", knobs="no candidate any more")
    assert benchmark.chosen([*records, former], "SimVQ", 1024).knobs == rows[2].knobs
    assert benchmark.chosen([*records[:5], former], "SimVQ", 1024) is None


def test_a_trial_is_run_once(benchmark: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, whose memory and time are in the record."""
    command = benchmark("quantizers")
    every = importlib.import_module("quantizers_candidates").candidates(1024)
    few = {"FSQ": every["FSQ"][2:3], "plain VQ": every["plain VQ"][:1]}
    monkeypatch.setattr(command.module, "candidates", lambda num_codes: few)
    for _ in range(2):
        command("--tune", "--steps", "1", "--codes", "1024", "--threads", "1")
    records = command.written("quantizers_emoji")["records"]
    assert [(found["kind"], found["num_codes"]) for found in records] == [("FSQ", 1024), ("plain VQ", 1024)]
    assert [found["knobs"] for found in records] == ["[10, 10, 10]", "3-d, weight 1"]
    for found in records:
        assert found["part"] == "tuning" and 0 < found["mse"] < 1
        assert found["cpu_milliseconds"] > 0 and found["memory_mb"] > 100


def test_the_distance_by_a_network(modules) -> None:
    """None of images that come back as they are; one of the size of that between images where they come back gray."""
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    class Same(torch.nn.Module):
        """A tokenizer that gives back what it gets, times `scale`."""

        scale = 1.0

        def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(decoded_pixel_values=pixels * self.scale)

    model, network = Same(), ShrunkPixels()
    assert modules[0].network_distance(model, images, network) == 0
    model.scale = 0.0
    assert 0.3 < modules[0].network_distance(model, images, network) < 0.8
