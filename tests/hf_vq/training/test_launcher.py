"""A run follows what `accelerate launch` says, refuses what contradicts it, and tells what really ran."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_vq.training.arguments import GeneratorTrainingArguments, TokenizerTrainingArguments
from hf_vq.training.base_arguments import BaseTrainingArguments

ROOT = Path(__file__).parents[3]
MakeTrainer = Callable[..., Any]
PRECISION, ACCUMULATION = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


@pytest.mark.parametrize(
    ("said", "own", "expected"),
    [
        ({}, {}, ("no", 1)),
        ({PRECISION: "bf16", ACCUMULATION: "4"}, {}, ("bf16", 4)),
        ({PRECISION: "bf16", ACCUMULATION: "4"}, {"mixed_precision": "bf16", "gradient_accumulation_steps": 4},
         ("bf16", 4)),
        # What a launcher says when nobody told it anything.
        ({PRECISION: "no", ACCUMULATION: "1"}, {"mixed_precision": "bf16", "gradient_accumulation_steps": 2},
         ("bf16", 2)),
        ({ACCUMULATION: "auto"}, {}, ("no", 1)),
    ],
)  # fmt: skip
def test_the_launcher_is_followed(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str], own: dict[str, Any], expected: tuple[str, int]
) -> None:
    """Where the run's own settings say nothing, the launcher's hold; the default of a launcher is no word of it."""
    for name in (PRECISION, ACCUMULATION):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    args = TokenizerTrainingArguments("out", **own)
    assert (args.mixed_precision, args.gradient_accumulation_steps) == expected
    assert args.fsdp is False


@pytest.mark.shards
def test_shards_are_the_trainers_own(monkeypatch: pytest.MonkeyPatch, make_trainer: MakeTrainer) -> None:
    """`--use_fsdp` of a launcher is `--fsdp`. Accelerate does not hear of it, and one process has nothing to shard."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    trainer = make_trainer()
    assert trainer.args.fsdp and not trainer.networks.sharded
    assert (
        getattr(trainer.accelerator.state, "fsdp_plugin", None) is None and os.environ["ACCELERATE_USE_FSDP"] == "true"
    )
    with pytest.raises(ValueError, match="fsdp does not go with monitor_steps, adversarial_weight: leave"):
        TokenizerTrainingArguments("out", adversarial_weight=0.1, monitor_steps=5)


@pytest.mark.parametrize(
    ("said", "own", "message"),
    [
        ({PRECISION: "bf16"}, {"mixed_precision": "no"}, "mixed_precision is bf16 for the launcher and no in"),
        ({ACCUMULATION: "4"}, {"gradient_accumulation_steps": 2}, "steps is 4 for the launcher and 2 in"),
        ({PRECISION: "fp8"}, {}, "mixed_precision fp8: expected no, bf16 or fp16"),
        ({ACCUMULATION: "some"}, {}, "gradient_accumulation_steps must be a number from 1 on, got 'some'"),
        ({PRECISION: "fp16", "ACCELERATE_USE_CPU": "true"}, {}, "fp16 needs a GPU, and this run computes on the CPU"),
        ({}, {"mixed_precision": "fp16", "use_cpu": True}, "fp16 needs a GPU, and this run computes on the CPU"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "asks for DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true"}, {"fsdp": False}, r"fsdp is on \(--use_fsdp\) for the launcher and False in"),
        pytest.param(
            {},
            {"fsdp": True, "torch_compile": True},
            "fsdp does not go with torch_compile: leave",
            marks=pytest.mark.shards,
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "asks for Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, {}, "asks for a parallelism config"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str], own: dict[str, Any], message: str
) -> None:
    """Before any data are read: when the settings are made, by every trainer's."""
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    for kind in (BaseTrainingArguments, GeneratorTrainingArguments):
        with pytest.raises(ValueError, match=message):
            kind("out", **own)


def test_losses_are_divided_once(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Any
) -> None:
    """A run that follows the launcher is the run with the same flag, and its card says both."""
    fields = {"max_steps": 2, "max_grad_norm": 0.01, "adam_epsilon": 1e-2}
    make_trainer("own", gradient_accumulation_steps=2, mixed_precision="bf16", **fields).train()
    monkeypatch.setenv(ACCUMULATION, "2")
    monkeypatch.setenv(PRECISION, "bf16")
    make_trainer("followed", **fields).train()

    runs.assert_same_run(tmp_path / "own", tmp_path / "followed")
    card = (tmp_path / "followed" / "final" / "README.md").read_text()
    assert "| micro batches per step | 2 |" in card and "| precision | bf16 |" in card


def test_micro_batches_count_as_one_step(make_trainer: MakeTrainer) -> None:
    """The codebook's clock counts optimizer steps, and the use of the codes is that of the whole step."""
    model = {"kmeans_init": True, "replace_freq": 2, "alternating_steps": 1, "beta": 0.9}
    whole = make_trainer("whole", model, max_steps=3, train_batch_size=4)
    parts = make_trainer("parts", model, max_steps=3, train_batch_size=1, gradient_accumulation_steps=4)
    for trainer in (whole, parts):
        trainer.train()
        assert trainer.quantizers[0].codebook.num_forwards == 3
    lines = [
        json.loads((trainer.output_dir / "metrics.jsonl").read_text().splitlines()[0]) for trainer in (whole, parts)
    ]
    assert lines[0]["usage"] == pytest.approx(lines[1]["usage"], abs=0.15)


def test_a_real_launcher_is_followed(tmp_path: Path) -> None:
    """`accelerate launch` hands its accumulation to nobody: the run finds it among the launcher's words."""
    launcher = "--cpu --num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision bf16".split()
    training = (
        "--dataset noto-emoji-32 --eval_split test --max_eval_images 4 --max_steps 1 --train_batch_size 2 "
        "--image_size 32 --base_channels 8 --embed_dim 4 --num_codes 8 --disable_tqdm"
    ).split()
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launcher, "--gradient_accumulation_steps", "3"]
        + ["scripts/train_tokenizer.py", *training, "--output_dir", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["arguments"]["gradient_accumulation_steps"] == 3
    assert state["arguments"]["mixed_precision"] == "bf16"
    assert "| micro batches per step | 3 |" in (tmp_path / "out" / "final" / "README.md").read_text()
