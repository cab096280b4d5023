"""The SLURM script, with programs in place of SLURM's: what it launches, and that a signal puts the job back."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.sbatch"
SCONTROL = '#!/bin/bash\n[ "$1" = show ] && echo node-1 || echo "scontrol $*"\n'
SRUN = '#!/bin/bash\ntrap "echo told; exit 1" USR1\necho "srun $*"\nfor _ in $(seq $ROUNDS); do sleep 0.05; done\n'


@pytest.mark.parametrize("told", [False, True])
def test_a_job_is_launched_and_goes_back_into_the_queue_if_it_is_told(told: bool, tmp_path: Path) -> None:
    """Its words reach the command. The signal is passed on, the run's end waited for, and the job queued again."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "ROUNDS": "200" if told else "1",
        **{"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_GPUS_ON_NODE": "8"},
    }
    words = ["bash", str(SCRIPT), "train-tokenizer", "--config", "images_256"]
    with (tmp_path / "out").open("w") as out, subprocess.Popen(words, env=environment, stdout=out) as process:
        while "srun" not in (tmp_path / "out").read_text():
            time.sleep(0.02)
        if told:
            process.send_signal(signal.SIGUSR1)
        status = process.wait(timeout=30)

    text = (tmp_path / "out").read_text()
    assert "torchrun --nnodes 2 --nproc_per_node 8 --rdzv_id 7-0" in text and "--rdzv_endpoint node-1:29500" in text
    assert "-m hf_vq train-tokenizer --config images_256 --resume_from_checkpoint latest" in text
    assert ("told" in text) == told and ("scontrol requeue 7" in text) == told and (status == 0) != told
