"""Numbers and pictures of a run: metrics.jsonl, PNG files, TensorBoard."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from hf_vq.training.reporting import LogWindow, MetricsFile

MakeTrainer = Callable[..., Any]


def test_metrics_of_training_and_evaluation_are_written(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """A script can read every number from metrics.jsonl, at the steps that were asked for."""
    returned = make_trainer(max_steps=8, logging_steps=2, eval_steps=4).train()
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    held_out = [line for line in lines if line["split"] == "eval"]

    assert [line["step"] for line in train] == [2, 4, 6, 8]
    assert [line["step"] for line in held_out] == [4, 8]
    expected = "loss reconstruction_loss commitment_loss perplexity usage learning_rate grad_norm images_per_second"
    assert set(expected.split()) | {"replaced_codes", "epoch"} <= train[0].keys()
    assert {"mse", "psnr", "ssim", "usage", "perplexity", "quantization_error", "active_codes"} <= held_out[0].keys()
    assert train[-1]["epoch"] == pytest.approx(8 * 4 / 24)
    assert {name: held_out[-1][name] for name in returned} == returned


def test_evaluations_leave_pictures(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Each evaluation writes a reconstruction grid and a usage histogram."""
    make_trainer(max_steps=4, eval_steps=2).train()

    names = sorted(path.name for path in (tmp_path / "out" / "eval").iterdir())
    assert names == [f"step-000000{step}-{picture}.png" for step in (2, 4) for picture in ("reconstructions", "usage")]
    for name in names:
        with Image.open(tmp_path / "out" / "eval" / name) as picture:
            picture.load()
            assert picture.width > 100


def test_tensorboard_gets_numbers_and_pictures(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """The event file holds the scalars of metrics.jsonl and pictures in color."""
    trainer = make_trainer(max_steps=4, eval_steps=2, report_to=["tensorboard"])
    trainer.train()
    trainer.close()
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "out" / "logs" / "hf_vq"))
    events.Reload()

    for split, name in (("train", "loss"), ("eval", "psnr"), ("train", "replaced_codes")):
        found = {event.step: event.value for event in events.Scalars(f"{split}/{name}")}
        assert found == pytest.approx({line["step"]: line[name] for line in lines if line["split"] == split})
    for name in ("eval/reconstructions", "eval/usage"):
        pictures = events.Images(name)
        assert [picture.step for picture in pictures] == [2, 4]
        assert pictures[0].width > 100


def test_a_tracker_that_is_not_installed_is_an_error(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate would leave it out without a word; a name it does not know is an error as well."""
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)

    with pytest.raises(ValueError, match="report_to names wandb, but the package is not installed"):
        make_trainer(report_to=["wandb"])
    with pytest.raises(ValueError, match="tensorbord"):
        make_trainer(report_to=["tensorbord"])


def test_a_bar_shows_progress_and_loss(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The progress bar counts optimizer steps and shows the last metrics."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    make_trainer(max_steps=3, disable_tqdm=False).train()

    bar = capsys.readouterr().err
    assert "3/3" in bar
    assert "loss=" in bar and "usage=" in bar


@pytest.mark.parametrize("settings", [{"disable_tqdm": True}, {"disable_tqdm": False}])
def test_without_a_bar_there_is_a_line(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    """A log shows step, losses, learning rate and speed, and no bar, whether or not one was asked for."""
    with caplog.at_level(logging.INFO):
        make_trainer(max_steps=4, logging_steps=2, eval_steps=0, **settings).train()

    number = r"[\d.e+-]+"
    losses = f"loss {number}, commitment_loss {number}, reconstruction_loss {number}"
    pattern = f"step {{}}/4: {losses}, learning_rate {number}, images_per_second {number}"
    lines = [line for line in caplog.messages if line.startswith("step ") and "/4:" in line]
    assert len(lines) == 2
    assert re.fullmatch(pattern.format(2), lines[0]) and re.fullmatch(pattern.format(4), lines[1])
    assert "train:" not in capsys.readouterr().err


def test_none_reports_to_no_tracker(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """`--report_to none` is the same as nothing."""
    trainer = make_trainer(report_to=["none"], max_steps=1)
    trainer.train()

    assert trainer.accelerator.trackers == []
    assert not (tmp_path / "out" / "logs").exists()


def test_a_window_averages_or_adds_up() -> None:
    """Metrics are averaged over the steps in which they came, counts are added up, and taking empties the window."""
    window = LogWindow(frozenset({"replaced"}))
    window.add({"loss": torch.tensor(1.0), "replaced": torch.tensor(2)}, images=8, seconds=1.0)
    window.add({"loss": torch.tensor(3.0), "replaced": torch.tensor(5), "late": torch.tensor(7.0)}, 8, 3.0)

    taken = window.take(lambda stacked: stacked)

    assert taken == {"loss": 2.0, "replaced": 7.0, "late": 7.0, "images_per_second": 4.0}
    assert window.state_dict() == {"totals": {}, "counts": {}}


def test_a_metrics_file_survives_a_cut_off_line(tmp_path: Path) -> None:
    """After a kill in the middle of a line, truncation keeps the whole lines up to the step and no others."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.append(step, "train", {"loss": float(step)})
    with file.path.open("a") as stream:
        stream.write('{"step": 4, "spl')

    file.truncate(2)
    file.append(3, "train", {"loss": 9.0})

    assert [(line["step"], line["loss"]) for line in file.read()] == [(1, 1.0), (2, 2.0), (3, 9.0)]
