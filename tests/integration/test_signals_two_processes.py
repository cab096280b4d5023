"""Signals to a run of two processes (gloo): all ranks end at the same step, whoever was told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor

from hf_vq.training.checkpoints import list_checkpoints
from hf_vq.training.order import DataOrder

from .test_two_processes import ROOT, free_port, launch
from .two_processes import Noise, make_trainer


class Recorder(Noise):
    """The images, and which of them were read."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.seen.append(index)
        return super().__getitem__(index)


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its state in class attributes."""
    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


def test_one_rank_stops_all_at_the_same_step(tmp_path: Path, runs: Any) -> None:
    """The rank that got no signal ends with the same status, and both go on to the bits of a run without it.

    A run of one process goes on in two, and that of two in one, with the images that each step would have had.
    """
    alone = {"train_batch_size": 4, "use_cpu": True}
    make_trainer(tmp_path / "alone", **alone).train()
    launch(
        *("torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()),
        *(str(Path(__file__).with_name("signal_processes.py")), str(tmp_path)),
        CUDA_VISIBLE_DEVICES="",
    )
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert (seen["code"], seen["step"]) == (143, 3)
        assert seen["resumed_from"] == ["checkpoint-2", "checkpoint-3"]
        assert seen["equal"]

    left = make_trainer(tmp_path / "left", **alone, resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-4"))
    left.data.dataset = recorder = Recorder()
    left.train()
    order = DataOrder(21, 8, 0)
    steps = [images for epoch in range(3) for images in order.batches_of_epoch(epoch)][4:6]  # of 8 images each
    joined = [json.loads((tmp_path / f"rank-{rank}.json").read_text())["joined"] for rank in range(2)]
    assert recorder.seen == sum(steps, [])
    assert sorted(sum(joined, [])) == sorted(recorder.seen)
    losses = [
        [line["loss"] for line in runs.metrics(tmp_path / name) if line["step"] == 6 and line["split"] == "train"]
        for name in ("stopped", "left", "alone", "joined")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[3] == pytest.approx(losses[2], rel=0.1)


def test_a_launcher_that_is_told_to_stop_lets_the_run_save(tmp_path: Path) -> None:
    """torchrun hands SIGTERM on to its processes, which save and end before it would kill them."""
    words = (
        "scripts/train_tokenizer.py --dataset noto-emoji-32 --eval_split test --eval_steps 0 --save_steps 0 "
        "--logging_steps 1 --max_steps 100000 --train_batch_size 2 --base_channels 8 --embed_dim 4 --num_codes 8 "
        "--image_size 32 --disable_tqdm"
    ).split()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    process = subprocess.Popen(
        [*launcher, *words, "--output_dir", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "out" / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=240)[1]

    (checkpoint,) = list_checkpoints(tmp_path / "out")
    step = checkpoint.name.removeprefix("checkpoint-")
    assert f"Stopped by SIGTERM after step {step}, which is saved." in said
    assert len(json.loads((checkpoint / "trainer_state.json").read_text())["files"]) == 4
    assert process.returncode != 0
