"""Two real processes on CPUs (gloo) collect what one process collects, and train as if nobody looked."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hf_vq import VQConfig, VQModel
from hf_vq.training.monitor import CodebookMonitor
from hf_vq.training.snapshots import load_snapshots

WORKER = Path(__file__).with_name("monitor_processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes of `monitor_processes.py` left their runs and what they saw."""
    path = tmp_path_factory.mktemp("two")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port,
         str(WORKER), str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    return path


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    """The worker's module, to make the same trainer in this process."""
    spec = importlib.util.spec_from_file_location("monitor_processes", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_processes_collect_the_numbers_of_one(folder: Path, worker: ModuleType, tmp_path: Path) -> None:
    """One process that looks at the same model and all seven images gets the same metrics, points and counts."""
    snapshots = load_snapshots(folder / "with" / "codebook")
    assert [snapshot.step for snapshot in snapshots] == [1, 2, 3]

    trainer: Any = worker.make_trainer(tmp_path / "one")
    weights = VQModel.from_pretrained(folder / "with" / "checkpoint-2", config=VQConfig(**worker.CONFIG)).state_dict()
    trainer.model.load_state_dict(weights)
    trainer.step = 2
    monitor = CodebookMonitor(every=1, num_images=worker.NUM_IMAGES)
    monitor.on_train_begin(trainer)
    alone, together = monitor.observe(trainer), snapshots[1]

    assert together.uses.sum() == 7 * 16 and together.embeddings.shape == (7 * 16, 4)
    assert torch.equal(together.uses, alone.uses) and torch.equal(together.codes, alone.codes)
    torch.testing.assert_close(together.embeddings, alone.embeddings, rtol=1e-5, atol=1e-6)
    assert together.metrics == pytest.approx(alone.metrics, rel=1e-4)
    assert together.metrics["gradient_gap"] > 0.01


def test_training_does_not_notice_the_monitor(folder: Path) -> None:
    """On each rank weights, averages, its own batch norm statistics and random numbers are those without a monitor."""
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for rank in ranks:
        assert len(rank["with"]) == 4 and rank["with"] == rank["without"]
    # Statistics differ under way (random numbers, the last entry, do anyway), so averaging them would show.
    assert ranks[0]["with"][1][:-1] != ranks[1]["with"][1][:-1]
