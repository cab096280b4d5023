"""A real training process, killed at random moments and in the middle of a save, ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_vq.training.checkpoints import checkpoint_step, list_checkpoints
from hf_vq.utils.files import TEMPORARY_PREFIX

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "--config noto_emoji_32 --max_steps 40 --train_batch_size 8 --save_steps 2 --eval_steps 10 "
    "--logging_steps 3 --max_eval_images 16 --use_ema --ema_decay 0.95 --use_cpu --disable_tqdm "
    "--adversarial_weight 0.1 --adversarial_start 5 --discriminator_layers 2 --discriminator_channels 8 "
    "--base_channels 16 --num_res_blocks 1 --num_codes 64 --replace_freq 3 --kmeans_init true "
    "--alternating_steps 1 --alternating_kind sgd --beta 0.9 --affine_lr 2.0 --sync_nu 0.2"
).split()


def start(output_dir: Path, *words: str) -> subprocess.Popen[bytes]:
    """Starts the training script."""
    return subprocess.Popen(
        [sys.executable, "scripts/train_tokenizer.py", *SETTINGS, "--output_dir", str(output_dir), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    """Waits for a condition while a process runs."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.001)


def reached(output_dir: Path) -> int:
    """The step of the last complete checkpoint."""
    checkpoints = list_checkpoints(output_dir)
    return checkpoint_step(checkpoints[-1]) if checkpoints else 0


def kill_at_random_moment(process: subprocess.Popen[bytes], output_dir: Path) -> None:
    """Kills a run some checkpoints further on, somewhere in the steps that follow."""
    target = reached(output_dir) + 2 * random.randint(1, 4)
    wait_until(lambda: reached(output_dir) >= target, process)
    time.sleep(random.uniform(0, 0.1))
    process.kill()
    process.communicate()


def kill_during_a_save(process: subprocess.Popen[bytes], output_dir: Path) -> None:
    """Kills a run that has written part of a checkpoint: it is stopped first, to be sure that it still writes."""

    def stopped_in_a_save() -> bool:
        if not list_checkpoints(output_dir) or not list(output_dir.glob(f"{TEMPORARY_PREFIX}checkpoint-*/*")):
            return False
        process.send_signal(signal.SIGSTOP)
        if list(output_dir.glob(f"{TEMPORARY_PREFIX}checkpoint-*/*")):
            return True
        process.send_signal(signal.SIGCONT)
        return False

    wait_until(stopped_in_a_save, process)
    process.kill()
    process.communicate()


def test_a_killed_run_ends_bit_equal_to_an_uninterrupted_one(tmp_path: Path, runs: Any) -> None:
    """SIGKILL at two random moments and during a save changes neither weights nor averages nor metrics."""
    straight = start(tmp_path / "straight")
    killed = tmp_path / "killed"

    kill_at_random_moment(start(killed), killed)
    kill_during_a_save(start(killed, "--resume_from_checkpoint", "latest"), killed)
    assert list(killed.glob(f"{TEMPORARY_PREFIX}checkpoint-*")), "the kill came too late to test anything"
    kill_at_random_moment(start(killed, "--resume_from_checkpoint", "latest"), killed)
    assert reached(killed) < 40, "the run was over before the last kill"
    last = start(killed, "--resume_from_checkpoint", "latest")
    for process in (last, straight):
        errors = process.communicate(timeout=180)[1].decode()
        assert process.returncode == 0, errors

    assert not list(killed.glob(f"{TEMPORARY_PREFIX}*"))
    runs.assert_same_run(tmp_path / "straight", killed)
