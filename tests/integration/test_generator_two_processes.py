"""Two real processes on CPUs (gloo) train one generator."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel

from hf_vq import MaskGitModel
from hf_vq.metrics.generation import HiddenTokenMetrics
from hf_vq.training.generator_data import FixedMasks
from hf_vq.training.order import evaluation_batches

WORKER = Path(__file__).with_name("generator_processes.py")


def test_two_processes_train_one_generator(tmp_path: Path) -> None:
    """Weights, averages and optimizers are bit-equal on both ranks, also resumed; the numbers are one process's."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(WORKER)]
    process = subprocess.run(
        [*command, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]

    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert ranks[0]["random"] != ranks[1]["random"]  # each hides other tokens
    assert ranks[0]["state"] == ranks[1]["state"]
    assert ranks[0]["resumed"] == ranks[1]["resumed"] == ranks[0]["state"]

    assert ranks[0]["metrics"] == ranks[1]["metrics"]
    model = AutoModel.from_pretrained(tmp_path / "straight" / "final")
    assert isinstance(model, MaskGitModel)
    metrics = HiddenTokenMetrics()
    rows = runpy.run_path(str(WORKER))["Tokens"]()
    for batch in evaluation_batches(FixedMasks(rows, model.config, seed=0), 5):
        out = model(image_tokens=batch["image_tokens"], class_labels=batch["label"], mask=batch["mask"])
        metrics.update(out.logits, batch["image_tokens"], batch["mask"])
    expected = metrics.compute()
    assert {name: ranks[0]["metrics"][name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert ranks[0]["metrics"]["num_distance_images"] == 6
