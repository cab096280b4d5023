"""Signals to a run of two processes (gloo): all ranks end at the same step, whoever was told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hf_vq.training.checkpoints import list_checkpoints

from .test_two_processes import ROOT, free_port, launch


def test_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    """The rank that got no signal ends with the same status, and both go on to the bits of a run without it."""
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
