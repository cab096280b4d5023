"""Two nodes, each started by a torchrun of its own, with folders of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_vq.commands import train_tokenizer

from ..tiny_tokens import save, tiny
from .test_two_processes import ROOT, forget_accelerate, free_port

TRAIN = (
    "--dataset photos --eval_split none --output_dir out --image_size 16 --base_channels 8 --num_codes 16 "
    "--replace_freq 2 --use_ema --use_cpu --disable_tqdm"
).split()


class Nodes:
    """Two folders that stand for the disks of two nodes."""

    def __init__(self, folder: Path) -> None:
        self.disks = [folder / "node-0", folder / "node-1"]
        for disk in self.disks:
            (disk / "photos").mkdir(parents=True)
            for number in range(12):
                Image.new("RGB", (16, 16), (20 * number, 9 * number, 5)).save(disk / "photos" / f"{number:02}.png")

    def run(self, *words: str) -> list[tuple[int, str]]:
        """Gives both nodes the same command in their own folder; exit status and what was written."""
        torchrun = "-m torch.distributed.run --nnodes 2 --nproc_per_node 1 --master_addr 127.0.0.1".split()
        torchrun += ["--master_port", free_port()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"}
        running = [
            subprocess.Popen(
                [sys.executable, *torchrun, "--node_rank", str(node), "-m", "hf_vq", *words],
                cwd=disk,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for node, disk in enumerate(self.disks)
        ]
        try:
            told = [process.communicate(timeout=180)[0] for process in running]
        finally:
            for process in running:
                process.kill()
        return [(process.returncode, text) for process, text in zip(running, told, strict=True)]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Two nodes with the same photos."""
    yield Nodes(tmp_path)


def test_a_run_resumes_where_one_node_alone_has_its_checkpoints(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of one process goes on with two, the second of which has neither its settings nor its checkpoint."""
    with monkeypatch.context() as patch:
        patch.chdir(nodes.disks[0])
        train_tokenizer.main([*TRAIN, "--train_batch_size", "8", "--max_steps", "2"])
    forget_accelerate()

    resume = "train-tokenizer --output_dir out --resume_from_checkpoint latest --max_steps 4 --train_batch_size 4"
    for status, told in nodes.run(*resume.split()):
        assert status == 0, told[-3000:]

    folder = nodes.disks[0] / "out" / "checkpoint-4"
    assert len(torch.load(folder / "rank_states.pt", weights_only=True)) == 2
    assert not (nodes.disks[1] / "out").exists()


def test_what_a_node_lacks_is_told_on_both(nodes: Nodes) -> None:
    """A folder that one node lacks, and an output folder that they do not share, in words about folders."""
    save(tiny(), nodes.disks[0] / "vq" / "final")
    tokenize = ["tokenize", "--tokenizer", "vq/final", "--dataset", "photos", "--use_cpu", "--output_dir"]

    for status, told in nodes.run(*tokenize, "tokens"):
        assert status and "tokens' of process 0 is not the one of process 1" in told, told[-3000:]
        assert "choose a folder that all nodes share" in told

    for status, told in nodes.run(*tokenize, str(nodes.disks[0].parent / "tokens")):
        assert status and "'vq/final' is there for process 0" in told and "but not for process 1" in told, told[-3000:]
        assert "put the same files into the same folder on all of them" in told
        assert "Hub" not in told and "gloo" not in told
