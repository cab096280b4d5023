"""State dicts of trainers, checkpoints without a trainer, and a trainer of something that is no image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_vq.training.base_arguments import BaseTrainingArguments
from hf_vq.training.checkpoints import CheckpointError, load_weights, read_checkpoint, write_checkpoint
from hf_vq.training.networks import MODEL
from hf_vq.training.order import Batch
from hf_vq.training.trainer import BaseTrainer
from hf_vq.utils.processes import on_main_process

MakeTrainer = Callable[..., Any]


def test_a_state_dict_puts_another_trainer_into_the_same_state(
    make_trainer: MakeTrainer, everything: tuple[dict[str, Any], dict[str, Any]], runs: Any
) -> None:
    """With everything on, both trainers take the same next steps, and end in equal states."""
    fields, model = everything
    first, second = (make_trainer(name, model, **fields, max_steps=9) for name in ("first", "second"))
    batches = first.data.batches(0)
    for _ in range(4):
        first.train_step([next(batches), next(batches)])
        first.step += 1

    second.load_state_dict(copy.deepcopy(first.state_dict()))
    rank_state = copy.deepcopy(first.rank_state_dict())
    steps = [[next(batches), next(batches)] for _ in range(3)]
    for trainer in (first, second):
        trainer.load_rank_state_dict(rank_state)
        for step in steps:
            trainer.train_step(step)
            trainer.step += 1

    assert second.step == 7
    runs.assert_equal(first.state_dict(), second.state_dict())
    runs.assert_equal(first.rank_state_dict(), second.rank_state_dict())


def test_a_checkpoint_is_written_and_read_without_a_trainer(tmp_path: Path, runs: Any) -> None:
    """What is read is what was written; weights that are tied are stored once, and come back under both names."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    network = nn.Sequential(first, second)
    weights = copy.deepcopy(network).state_dict()
    training = {"optimizers": {"model": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "extra": {}}
    progress = {"step": 3, "epoch": 0.5, "eval_metrics": {"mse": 0.25}}
    state = {"model": network.state_dict(), "ema": None, "training": training, "progress": progress}
    rank_states = [{"random": torch.tensor([rank])} for rank in range(2)]

    write_checkpoint(tmp_path / "checkpoint-3", "{}", state, rank_states, {"num_processes": 2})
    read, read_rank_states = read_checkpoint(tmp_path / "checkpoint-3")

    assert sorted(read["model"]) == ["0.bias", "0.weight", "1.bias"]
    nn.init.zeros_(first.weight)
    load_weights(network, read["model"])
    runs.assert_equal(dict(network.state_dict()), dict(weights))
    runs.assert_equal({**read, "model": None}, {**state, "model": None})
    runs.assert_equal(read_rank_states, rank_states)


def test_what_fails_on_the_main_process_is_raised(make_trainer: MakeTrainer) -> None:
    """The result comes back, and so does the error with its type."""
    accelerator = make_trainer().accelerator

    def fail() -> None:
        raise CheckpointError("no space left")

    assert on_main_process(lambda: 5, accelerator) == 5
    with pytest.raises(CheckpointError, match="no space left"):
        on_main_process(fail, accelerator)


class LineConfig(PreTrainedConfig):
    """Of a line."""

    model_type = "test_line"


class Line(PreTrainedModel):
    """y = a x + b."""

    config: LineConfig

    def __init__(self, config: LineConfig) -> None:
        super().__init__(config)
        self.linear = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)
        self.post_init()

    def forward(self, x: Tensor) -> Tensor:
        """The line at x."""
        return self.linear(x)


class Points(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Points of the line y = 3 x - 1."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x = torch.tensor([index / 10])
        return {"x": x, "y": 3 * x - 1}


class LineTrainer(BaseTrainer):
    """Fits a line: all that a new kind of trainer has to write."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.networks.add(MODEL, self.model, [{"params": list(self.model.parameters())}], self.args.learning_rate)

    def backward_pass(self, batch: Batch, shared: bool, micro_batches: int) -> dict[str, Tensor]:
        """Least squares."""
        loss = (self.networks.wrapped[MODEL](batch["x"]) - batch["y"]).square().mean()
        self.accelerator.backward(loss / micro_batches)
        return {"loss": loss}

    def evaluation(self) -> tuple[dict[str, float], dict[str, Image.Image]]:
        """The largest error."""
        errors = [(self.model(batch["x"]) - batch["y"]).abs().max() for batch in self.held_out_batches(Points())]
        return {"error": max(errors).item()}, {}

    def card(self, folder: Path) -> ModelCard:
        """How it was made."""
        return ModelCard(f"---\n---\nSteps: {self.recipe()['steps']}")


@pytest.mark.parametrize("use_ema", [False, True])
def test_a_trainer_of_something_that_is_no_image(tmp_path: Path, runs: Any, use_ema: bool) -> None:
    """The base class assumes neither pixels nor batch norm; such a run learns, logs, and resumes to the same bits."""

    def make(name: str, max_steps: int, **fields: Any) -> LineTrainer:
        torch.manual_seed(0)
        settings: dict[str, Any] = {"train_batch_size": 5, "gradient_accumulation_steps": 2, "learning_rate": 0.1}
        settings |= {"lr_scheduler": "constant", "use_cpu": True, "disable_tqdm": True}
        settings |= {"logging_steps": 40, "eval_steps": 40, "save_steps": 40}
        folder = str(tmp_path / name)
        args = BaseTrainingArguments(folder, max_steps=max_steps, use_ema=use_ema, **settings, **fields)
        return LineTrainer(Line(LineConfig()), args, Points(), Points())

    assert make("straight", 120).train()["error"] < 0.1
    make("resumed", 80).train()
    make("resumed", 120, resume_from_checkpoint="latest").train()

    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    assert "Steps: 120" in (tmp_path / "straight" / "final" / "README.md").read_text()
