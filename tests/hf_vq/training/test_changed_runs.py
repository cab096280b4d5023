"""A run that is resumed can be prolonged, and changed where that is asked for; what changed is written down."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_vq.training.checkpoints import STATE_FILE, CheckpointError
from hf_vq.training.optimization import learning_rate_factor

MakeTrainer = Callable[..., Any]


def changes_in(folder: Path) -> Any:
    """The changes that a checkpoint of a run tells of."""
    return json.loads((folder / STATE_FILE).read_text())["changes"]


@pytest.mark.parametrize("step", [4, 8])
def test_a_longer_run_is_prolonged_by_its_length_alone(
    make_trainer: MakeTrainer, tmp_path: Path, runs: Any, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped or finished, it goes on by the schedule of the new length, and checkpoint, log and card say so."""
    make_trainer(max_steps=8, save_steps=4, save_total_limit=None).train()
    start = tmp_path / "out" / f"checkpoint-{step}"
    with caplog.at_level(logging.INFO):
        trainer = make_trainer(max_steps=12, logging_steps=1, save_steps=4, resume_from_checkpoint=str(start))
        trainer.train()

    rates = {line["step"]: line["learning_rate"] for line in runs.metrics(tmp_path / "out") if "loss" in line}
    assert sorted(rates)[-4:] == [9, 10, 11, 12]
    for number in range(step + 1, 13):  # the rate of the step that ends as `number`
        assert rates[number] == pytest.approx(1e-3 * learning_rate_factor(number - 1, trainer.args))
    assert changes_in(tmp_path / "out" / "checkpoint-12") == [{"step": step, "settings": {"max_steps": [8, 12]}}]
    assert f"from step {step} on, the learning rate follows the schedule of the new length" in caplog.text
    card = (tmp_path / "out" / "final" / "README.md").read_text()
    assert f"| changed | at step {step}: max_steps from 8 to 12 |" in card


def test_a_shorter_run_is_a_change_like_others(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Its schedule is another one than the run has followed; a constant rate has none."""
    start = str(tmp_path / "out" / "checkpoint-3")
    make_trainer(max_steps=8, save_total_limit=None).train()
    with pytest.raises(CheckpointError, match="max_steps: 8 in the checkpoint, 6 now"):
        make_trainer(max_steps=6, resume_from_checkpoint=start).train()
    constant = {"lr_scheduler": "constant", "max_steps": 4}
    make_trainer(**constant, allow_changes=True, resume_from_checkpoint=start).train()
    assert changes_in(tmp_path / "out" / "checkpoint-4")[0]["settings"]["max_steps"] == [8, 4]


def test_what_differs_is_refused_with_the_way_out(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Each field with both values; the flag for what can change, and another run for what cannot."""
    make_trainer(max_steps=4).train()
    both = {"learning_rate": 0.5, "train_batch_size": 2}
    with pytest.raises(CheckpointError) as caught:
        make_trainer(max_steps=4, **both, resume_from_checkpoint="latest").train()
    text = str(caught.value)
    assert "learning_rate: 0.001 in the checkpoint, 0.5 now\n" in text
    assert "train_batch_size: 4 in the checkpoint, 2 now\n" in text
    assert "allow_changes" in text and "init_from" not in text

    for change in ({"model": {"num_codes": 32}}, {"seed": 1}, {"eval_fraction": 0.5}):
        with pytest.raises(CheckpointError, match=r"now \(never changes in a run\)\n.*init_from '.*checkpoint-4'"):
            make_trainer(max_steps=4, **change, allow_changes=True, resume_from_checkpoint="latest").train()


def test_changes_are_made_from_the_step_on(
    make_trainer: MakeTrainer, tmp_path: Path, everything: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """Optimizer, loss and quantizer get the new values, keep their moments, and the history grows with each change."""
    fields, model = everything
    settings: dict[str, Any] = {**fields, "max_steps": 8, "save_steps": 2, "save_total_limit": None}
    make_trainer("out", model, **settings).train()
    changed = {**settings, "learning_rate": 0.5, "adam_beta2": 0.5, "weight_decay": 0.25, "allow_changes": True}
    start = str(tmp_path / "out" / "checkpoint-4")
    trainer = make_trainer("out", {**model, "beta": 0.5, "replace_freq": 0}, **changed, resume_from_checkpoint=start)
    train_step = trainer.train_step

    def look(batches: Any) -> Any:
        if trainer.step == 4:
            for network, optimizer in trainer.networks.optimizers.items():
                decays = [group["weight_decay"] for group in optimizer.param_groups]
                assert decays[0] == 0.25 and set(decays[1:]) <= {0.0}, network
                assert all(group["betas"] == (0.9, 0.5) for group in optimizer.param_groups)
                clock = trainer.networks.schedules[network].last_epoch
                expected = 0.5 * learning_rate_factor(clock, trainer.args)
                assert all(group["lr"] == pytest.approx(expected) for group in optimizer.param_groups)
                assert optimizer.state and all(int(state["step"]) == clock for state in optimizer.state.values())
        return train_step(batches)

    trainer.train_step = look
    trainer.train()
    again = {**changed, "learning_rate": 0.25, "max_steps": 9}
    model_now = {**model, "beta": 0.5, "replace_freq": 0}
    make_trainer("out", model_now, **again, resume_from_checkpoint="latest").train()

    first, second = changes_in(tmp_path / "out" / "checkpoint-9")
    assert (first["step"], second["step"]) == (4, 8)
    assert first["settings"] == {
        "learning_rate": [0.001, 0.5],
        "weight_decay": [0.0001, 0.25],
        "adam_beta2": [0.95, 0.5],
        "model.beta": [0.9, 0.5],
        "model.replace_freq": [2, 0],
    }
    assert second["settings"] == {"learning_rate": [0.5, 0.25], "max_steps": [8, 9]}
    card = (tmp_path / "out" / "final" / "README.md").read_text()
    assert "at step 4: learning_rate from 0.001 to 0.5, " in card
    assert "; at step 8: max_steps from 8 to 9, learning_rate from 0.5 to 0.25" in card


def test_what_was_off_can_be_turned_on(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """An average of the weights begins with the weights, a discriminator and inner steps begin as new."""
    make_trainer(model={"alternating_steps": 0}, max_steps=4).train()
    on: dict[str, Any] = {"use_ema": True, "adversarial_weight": 0.1, "discriminator_layers": 1}
    model = {"alternating_steps": 1, "alternating_kind": "sgd"}
    trainer = make_trainer(model=model, max_steps=6, **on, allow_changes=True, resume_from_checkpoint="latest")
    assert trainer.train()["mse"] < 1
    assert trainer.networks.schedules["discriminator"].last_epoch == 2
    assert (tmp_path / "out" / "checkpoint-6" / "ema.safetensors").exists()


def seen_images(trainer: Any) -> list[int]:
    """Lets a trainer note the images that it sees, instead of learning from them."""
    seen: list[int] = []
    backward_pass = trainer.backward_pass

    def note(batch: Any, *rest: Any) -> Any:
        seen.extend(batch["index"].tolist())
        return backward_pass(batch, *rest)

    trainer.backward_pass = note
    return seen


def test_another_batch_size_skips_no_image_and_repeats_none(
    make_trainer: MakeTrainer, tmp_path: Path, images: Any
) -> None:
    """Over all stretches of the run, every epoch shows each image once, in the order of the unchanged run."""
    unchanged = make_trainer("unchanged", train=images(20), max_steps=15, save_steps=0, eval_steps=0)
    expected = seen_images(unchanged)
    unchanged.train()

    seen: list[int] = []
    for steps, batch, accumulated in ((3, 4, 1), (5, 3, 2), (8, 7, 1), (11, 1, 5)):
        trainer = make_trainer(
            train=images(20),
            max_steps=steps,
            train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            allow_changes=True,
            resume_from_checkpoint="latest",
        )
        found = seen_images(trainer)
        trainer.train()
        seen += found
    assert len(seen) == 3 * 4 + 2 * 6 + 3 * 7 + 3 * 5 == 60
    assert seen == expected
    assert set(Counter(seen[:20]).values()) == {1}
    state = json.loads((tmp_path / "out" / "checkpoint-11" / STATE_FILE).read_text())
    assert state["epoch"] == 3.0
    assert "| images seen | 60 |" in (tmp_path / "out" / "final" / "README.md").read_text()


def test_a_training_set_of_another_length_begins_its_first_epoch(make_trainer: MakeTrainer, images: Any) -> None:
    """Images that were added to a folder make another order, which begins at its beginning."""
    make_trainer(train=images(20), max_steps=3).train()
    trainer = make_trainer(train=images(8), max_steps=5, allow_changes=True, resume_from_checkpoint="latest")
    seen = seen_images(trainer)
    trainer.train()
    assert sorted(seen) == list(range(8))
    assert trainer.data.images_seen(5) == 20


def test_a_change_resumes_like_any_run(make_trainer: MakeTrainer, tmp_path: Path, runs: Any) -> None:
    """After a change, an interruption leaves no trace either: the same bits as without it."""
    settings = {"max_steps": 4, "save_steps": 2}
    changed = {"max_steps": 9, "save_steps": 1, "train_batch_size": 3, "learning_rate": 1e-2}
    for name in ("straight", "interrupted"):
        make_trainer(name, **settings).train()
        make_trainer(name, **changed, allow_changes=True, resume_from_checkpoint="latest").train()
    trainer = make_trainer("interrupted", **changed, resume_from_checkpoint=str(tmp_path / "interrupted/checkpoint-8"))
    trainer.train()

    runs.assert_same_run(tmp_path / "straight", tmp_path / "interrupted")
    assert [change["step"] for change in changes_in(tmp_path / "interrupted" / "checkpoint-9")] == [4]
    assert torch.equal(trainer.model.quantize.codebook.weight, trainer.published_model().quantize.codebook.weight)
