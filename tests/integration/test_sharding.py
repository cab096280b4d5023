"""Real processes on CPUs (gloo) hold parts of one model, and learn what processes with whole copies learn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from .test_two_processes import ROOT


def run(folder: Path, what: str, processes: int) -> list[dict[str, Any]]:
    """Runs `sharded_processes.py`; what each process wrote."""
    script = str(Path(__file__).with_name("sharded_processes.py"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    process = subprocess.run(
        [sys.executable, *launcher, script, str(folder), what],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found = [json.loads((folder / f"{what}-{rank}.json").read_text()) for rank in range(processes)]
    assert [rank["world_size"] for rank in found] == [processes] * processes
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs of two processes."""
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What two processes saw, which trained each model twice."""
    return run(folder, "train", 2)


@pytest.mark.shards
@pytest.mark.parametrize("kind", ["generator", "tokenizer"])
def test_sharded_training_is_that_of_whole_copies(ranks: list[dict[str, Any]], folder: Path, kind: str) -> None:
    """Losses and gradients of 20 steps, weights and averages at the end, and what is measured; half the memory."""
    whole, sharded = (ranks[0][f"{kind}-{how}"] for how in ("whole", "sharded"))
    assert len(whole["losses"]) == 20
    torch.testing.assert_close(torch.tensor(sharded["losses"]), torch.tensor(whole["losses"]), rtol=1e-5, atol=0)
    assert sharded["metrics"] == pytest.approx(whole["metrics"], rel=1e-5)
    assert [rank[f"{kind}-sharded"]["share"] for rank in ranks] == pytest.approx([0.5, 0.5], abs=0.05)
    for name in ("model", "ema"):
        files = (folder / f"{kind}-{how}" / "checkpoint-20" / f"{name}.safetensors" for how in ("whole", "sharded"))
        first, second = map(load_file, files)
        assert first.keys() == second.keys()
        for key in first:
            torch.testing.assert_close(second[key], first[key], rtol=1e-5, atol=1e-6)

    final = AutoModel.from_pretrained(folder / f"{kind}-sharded" / "final")
    assert all(torch.isfinite(weight).all() for weight in final.parameters())


@pytest.mark.shards
def test_four_sharded_processes_go_on_with_the_run_of_two(ranks: list[dict[str, Any]], folder: Path) -> None:
    """With the same images per step, the losses of two processes with whole copies follow, but for rounding."""
    resumed = run(folder, "resume", 4)

    expected = torch.tensor(ranks[0]["tokenizer-whole"]["losses"][16:])
    for rank in resumed:
        torch.testing.assert_close(torch.tensor(rank["resumed"]["losses"]), expected, rtol=1e-4, atol=0)
    assert [rank["resumed"]["share"] for rank in resumed] == pytest.approx([0.25] * 4, abs=0.05)
