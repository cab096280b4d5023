"""Two real processes on CPUs (gloo) train one model, through both launchers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import AutoModel

import hf_vq
from hf_vq.training.checkpoints import CheckpointError

from .two_processes import make_trainer

ROOT = Path(__file__).parents[2]


def forget_accelerate() -> None:
    """The next trainer of this process begins without the state of the last one."""
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


def free_port() -> str:
    """A port that no one listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def launch(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a launcher to its end; one that hangs fails the test."""
    process = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes of `two_processes.py` saw."""
    folder = tmp_path_factory.mktemp("two")
    make_trainer(folder / "one", max_steps=2, use_cpu=True).train()
    forget_accelerate()
    launch(
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", free_port()),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *(str(Path(__file__).with_name("two_processes.py")), str(folder)),
        ACCELERATE_USE_CPU="1",
    )
    found = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for rank in found:
        rank["folder"] = folder
    return found


def test_there_are_two_processes_with_different_data(ranks: list[dict[str, Any]]) -> None:
    """The run is one run of two processes, and they do not train on the same images."""
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    seen = [{index for batch in rank["batches"] for index in batch} for rank in ranks]
    assert len(seen[0] | seen[1]) == 21
    assert ranks[0]["batches"] != ranks[1]["batches"]


def test_both_ranks_end_with_the_same_state(ranks: list[dict[str, Any]]) -> None:
    """Codebook, weights, batch-norm statistics, averages, discriminator and optimizers are bit-equal on both ranks."""
    assert ranks[0]["state"] == ranks[1]["state"]


def test_a_run_of_two_processes_resumes_bit_equal(ranks: list[dict[str, Any]]) -> None:
    """Each rank goes on with its own random numbers and data: the state is that of the uninterrupted run.

    The first one reads the checkpoint for both, as the second one has a folder of its own.
    """
    for rank in ranks:
        assert rank["resumed"] == rank["state"]
    assert "checkpoint-6" in ranks[0]["written"] and not ranks[1]["written"]


def test_the_number_of_processes_changes_where_it_is_asked_for(ranks: list[dict[str, Any]]) -> None:
    """Two go on with the run of one, in one state, and one goes on with theirs; no image is lost in between."""
    assert ranks[0]["changed"] == ranks[1]["changed"]
    assert [rank["images_seen"] for rank in ranks] == [2 * 4 + 2 * 8] * 2

    folder, fields = ranks[0]["folder"] / "one", {"max_steps": 5, "use_cpu": True, "resume_from_checkpoint": "latest"}
    with pytest.raises(CheckpointError, match="num_processes: 2 in the checkpoint, 1 now\n.*allow_changes"):
        make_trainer(folder, **fields).train()
    trainer = make_trainer(folder, **fields, allow_changes=True)
    trainer.train()
    forget_accelerate()
    assert trainer.data.images_seen(5) == 24 + 4
    assert [change["settings"]["num_processes"] for change in trainer.changes] == [[1, 2], [2, 1]]


def test_metrics_are_those_of_all_images(ranks: list[dict[str, Any]]) -> None:
    """Both ranks report the same numbers, over all held-out images, and one process measures the same."""
    assert ranks[0]["metrics"] == ranks[1]["metrics"]
    assert ranks[0]["metrics"]["num_images"] == 21

    model = AutoModel.from_pretrained(ranks[0]["folder"] / "straight" / "final").eval()
    assert isinstance(model, hf_vq.VQModel)
    images = torch.stack(
        [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in range(21)]
    )
    with torch.no_grad():
        out = model(images)
    assert ranks[0]["metrics"]["active_codes"] == out.image_tokens.unique().numel()
    assert ranks[0]["metrics"]["mse"] == pytest.approx(
        ((out.decoded_pixel_values - images) / 2).square().mean().item(), rel=1e-5
    )


def test_a_nan_on_one_rank_stops_both(ranks: list[dict[str, Any]]) -> None:
    """The rank whose own loss is fine stops in the same step, with the same last good checkpoint."""
    for rank in ranks:
        assert "in step 3" in rank["error"]
        assert "checkpoint-2" in rank["error"]
        assert rank["error"].startswith("The loss or its gradient is NaN or infinite")
        assert rank["lone_is_finite"] is False


def test_the_script_trains_with_torchrun(tmp_path: Path) -> None:
    """torchrun with the training script makes one run of two processes and leaves a model that loads."""
    launch(
        *("torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()),
        *("scripts/train_tokenizer.py", "--config", "noto_emoji_32"),
        *(
            "--output_dir",
            str(tmp_path / "out"),
            "--max_steps",
            "2",
            "--train_batch_size",
            "4",
            "--base_channels",
            "8",
        ),
        *("--base_channels", "8", "--num_codes", "16", "--max_eval_images", "4", "--disable_tqdm"),
        CUDA_VISIBLE_DEVICES="",
    )

    states = torch.load(tmp_path / "out" / "checkpoint-2" / "rank_states.pt", weights_only=True)
    assert len(states) == 2
    assert not torch.equal(states[0]["random"]["torch"], states[1]["random"]["torch"])
    assert AutoModel.from_pretrained(tmp_path / "out" / "final").config.num_codes == 16
