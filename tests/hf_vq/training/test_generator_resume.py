"""Generators that go on: to the same bits, with the same tokenizer, from older checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from hf_vq.training.checkpoints import STATE_FILE, CheckpointError
from hf_vq.utils.hashes import weights_sha256

from .generator_runs import MakeTrainer
from .stopped_runs import stop_after


def test_a_resumed_run_equals_the_uninterrupted_one(
    make_generator_trainer: MakeTrainer, tmp_path: Path, runs: Any
) -> None:
    """Weights, averages, optimizer, random masks and metrics are bit-equal after two interruptions."""
    settings = {
        "use_ema": True, "gradient_accumulation_steps": 2, "max_steps": 7, "num_distance_images": 4,
        "model": {"mask_count": "bernoulli", "unmasked_loss_weight": 0.1},
    }  # fmt: skip
    make_generator_trainer("straight", **settings).train()

    stop_after(make_generator_trainer("resumed", **settings), step=3)
    stop_after(make_generator_trainer("resumed", **settings, resume_from_checkpoint="latest"), step=5)
    make_generator_trainer("resumed", **settings, resume_from_checkpoint="latest").train()

    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_tokens_of_another_tokenizer_do_not_continue_a_run(make_generator_trainer: MakeTrainer) -> None:
    """The same configuration with other weights of the tokenizer is another run."""
    make_generator_trainer().train()
    other = make_generator_trainer(resume_from_checkpoint="latest", max_steps=6)
    with torch.no_grad():
        other.model.tokenizer.quantize.codebook.weight.add_(1)
    other.tokenizer_sha256 = weights_sha256(other.model.tokenizer)

    with pytest.raises(CheckpointError, match="tokens of another tokenizer"):
        other.train()


def test_a_run_older_than_the_range_of_pixels_goes_on(
    make_generator_trainer: MakeTrainer, tmp_path: Path, runs: Any
) -> None:
    """Its checkpoint does not say that the frozen tokenizer's pixels are in [0, 1], which changes no token."""
    settings: dict[str, Any] = {"tokenizer": {"pixel_range": [0.0, 1.0]}}
    make_generator_trainer("straight", **settings).train()
    stop_after(make_generator_trainer("resumed", **settings), step=3)
    file = tmp_path / "resumed" / "checkpoint-2" / STATE_FILE
    state = json.loads(file.read_text())
    del state["model"]["vq_config"]["pixel_range"], state["model"]["norm_eps"], state["files"], state["sha256"]
    file.write_text(json.dumps(state))

    with pytest.raises(CheckpointError, match="model.norm_eps: 1e-06 in the checkpoint, 0.001 now"):
        make_generator_trainer("resumed", {"norm_eps": 1e-3}, **settings, resume_from_checkpoint="latest").train()
    make_generator_trainer("resumed", **settings, resume_from_checkpoint="latest").train()
    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_a_checkpoint_loads_with_automodel(make_generator_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Weights of any checkpoint, tied ones too, can be looked at without a trainer."""
    trainer = make_generator_trainer()
    trainer.train()
    model = AutoModel.from_pretrained(tmp_path / "out" / "checkpoint-4")
    last = AutoModel.from_pretrained(tmp_path / "out" / "checkpoint-6")

    assert model.head.weight is model.transformer.embed_tokens.weight
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(last.state_dict()[name], weight), name
    assert not torch.equal(model.head.weight, last.head.weight)
