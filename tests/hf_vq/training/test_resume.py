"""A run that was stopped and resumed is, to the bit, the run that was not; and a resume that cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from hf_vq.training.checkpoints import STATE_FILE, CheckpointError, list_checkpoints
from hf_vq.training.run_folder import OutputFolderInUseError
from hf_vq.training.trainer import NonFiniteLossError

from .stopped_runs import stop_after

MakeTrainer = Callable[..., Any]


def test_a_resumed_run_equals_the_uninterrupted_one(
    make_trainer: MakeTrainer, tmp_path: Path, everything: tuple[dict[str, Any], dict[str, Any]], runs: Any
) -> None:
    """Weights, averages, optimizers, quantizer, random numbers and metrics are bit-equal after two interruptions."""
    fields, model = everything
    settings = {**fields, "max_steps": 11, "save_steps": 3}
    make_trainer("straight", model, **settings).train()

    stop_after(make_trainer("resumed", model, **settings), step=5)
    stop_after(make_trainer("resumed", model, **settings, resume_from_checkpoint="latest"), step=10)
    resumed = make_trainer("resumed", model, **settings, resume_from_checkpoint="latest")
    resumed.train()

    assert resumed.step == 11
    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_what_may_change_on_resume_changes_nothing(
    make_trainer: MakeTrainer, tmp_path: Path, everything: tuple[dict[str, Any], dict[str, Any]], runs: Any
) -> None:
    """Another rhythm of evaluation and logging, and data workers, lead to the same weights."""
    fields, model = everything
    make_trainer("straight", model, **fields, save_steps=4).train()

    stop_after(make_trainer("resumed", model, **fields, save_steps=4), step=5)
    changed = {"eval_steps": 1, "logging_steps": 3, "dataloader_num_workers": 1, "max_eval_images": 2}
    make_trainer("resumed", model, **fields, save_steps=4, **changed, resume_from_checkpoint="latest").train()

    runs.assert_same_checkpoint(tmp_path / "straight", tmp_path / "resumed", ignore=("rank_states.pt",))


@pytest.mark.parametrize(
    "model",
    [
        {
            "codebook_update": "ema",
            "alternating_steps": 0,
            "sync_nu": 0.0,
            "replace_policy": "busy",
            "replace_freq": 2,
        },
        {"num_codes": 256, "kmeans_init": True},  # still collecting samples for k-means when it is stopped
        {"quantizer_type": "residual", "num_groups": 4, "share_codebook": False, "quantizer_dropout": 1.0},
    ],
)
def test_training_only_state_of_quantizers_is_resumed(
    make_trainer: MakeTrainer, tmp_path: Path, model: dict[str, Any], runs: Any
) -> None:
    """Averages of an EMA codebook, samples for k-means and the draws of quantizer dropout survive an interruption."""
    settings = {"train_batch_size": 2, "max_steps": 6, "save_steps": 2}
    make_trainer("straight", model, **settings).train()

    stop_after(make_trainer("resumed", model, **settings), step=3)
    make_trainer("resumed", model, **settings, resume_from_checkpoint="latest").train()

    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_resuming_an_older_checkpoint_keeps_the_newer_ones_aside(
    make_trainer: MakeTrainer, tmp_path: Path, runs: Any
) -> None:
    """A run can go on from any checkpoint; later ones keep their files under another name, later metrics go."""
    make_trainer(save_total_limit=None).train()
    before = runs.metrics(tmp_path / "out")
    resumed = make_trainer(save_total_limit=None, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    resumed.train()

    names = sorted(path.name for path in (tmp_path / "out").iterdir() if "checkpoint" in path.name)
    assert names == [
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-8",
        "superseded-checkpoint-6",
        "superseded-checkpoint-8",
    ]
    assert runs.metrics(tmp_path / "out") == before


def test_latest_without_a_checkpoint_starts_anew(make_trainer: MakeTrainer, tmp_path: Path, runs: Any) -> None:
    """A run killed before its first checkpoint is started again by the same command."""
    make_trainer("straight").train()
    stop_after(make_trainer("killed", resume_from_checkpoint="latest"), step=2)
    make_trainer("killed", resume_from_checkpoint="latest").train()

    runs.assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_a_finished_run_is_resumed_without_a_step(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Resuming a finished run writes its final model again and trains nothing."""
    expected = make_trainer().train()
    trainer = make_trainer(resume_from_checkpoint="latest")
    trainer.train_step = pytest.fail

    assert trainer.train() == expected


def test_a_run_with_a_constant_rate_can_be_prolonged(make_trainer: MakeTrainer, tmp_path: Path, runs: Any) -> None:
    """More steps on resume give the weights of a run that was long from the start."""
    make_trainer("long", lr_scheduler="constant", max_steps=7).train()
    make_trainer("short", lr_scheduler="constant", max_steps=4).train()
    make_trainer("short", lr_scheduler="constant", max_steps=7, resume_from_checkpoint="latest").train()

    runs.assert_same_run(tmp_path / "long", tmp_path / "short")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate: 0.001 in the checkpoint, 0.5 now"),
        ({"train_batch_size": 9}, "train_batch_size: 4 in the checkpoint, 9 now"),
        ({"use_ema": True}, "use_ema: False in the checkpoint, True now"),
        ({"model": {"num_codes": 32}}, "model.num_codes: 16 in the checkpoint, 32 now"),
        ({"model": {"sync_nu": 0.0}}, "model.sync_nu: 0.2 in the checkpoint, 0.0 now"),
    ],
)
def test_a_resume_with_other_settings_is_refused(
    make_trainer: MakeTrainer, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """The error shows each differing field with both values, and nothing in the folder changes."""
    make_trainer(max_steps=8).train()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    with pytest.raises(CheckpointError, match=message) as caught:
        make_trainer(**{"max_steps": 8, **change}, resume_from_checkpoint="latest").train()

    assert str(caught.value).count("in the checkpoint") == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def forget_settings(folder: Path, arguments: set[str], model: set[str]) -> None:
    """Takes settings out of a checkpoint, as if a version without them had written it."""
    state = json.loads((folder / STATE_FILE).read_text())
    del state["files"], state["sha256"]
    for settings, names in ((state["arguments"], arguments), (state["model"], model)):
        for name in names:
            del settings[name]
    (folder / STATE_FILE).write_text(json.dumps(state))


def test_settings_that_an_older_checkpoint_lacks_are_their_defaults(
    make_trainer: MakeTrainer, tmp_path: Path, runs: Any
) -> None:
    """The run goes on if the new fields have their defaults, and only then."""
    make_trainer("straight").train()
    stop_after(make_trainer("resumed"), step=7)
    forget_settings(tmp_path / "resumed" / "checkpoint-6", {"ema_decay"}, {"pixel_range"})

    for fields, line in (
        (
            {"model": {"pixel_range": [0.0, 1.0]}},
            r"model.pixel_range: \[-1.0, 1.0\] in the checkpoint, \[0.0, 1.0\] now",
        ),
        ({"ema_decay": 0.5}, "ema_decay: 0.999 in the checkpoint, 0.5 now"),
    ):
        with pytest.raises(CheckpointError, match=line):
            make_trainer("resumed", **fields, resume_from_checkpoint="latest").train()
    make_trainer("resumed", resume_from_checkpoint="latest").train()
    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_a_resume_on_other_data_is_refused(make_trainer: MakeTrainer, images: Any) -> None:
    """A training set of another length is another run."""
    make_trainer().train()

    with pytest.raises(CheckpointError, match="num_train_images: 24 in the checkpoint, 23 now"):
        make_trainer(train=images(23), resume_from_checkpoint="latest").train()


def test_a_folder_that_holds_a_run_is_refused(make_trainer: MakeTrainer, tmp_path: Path, runs: Any) -> None:
    """A new run does not touch another one unless it is told to delete it, and then spares foreign files."""
    make_trainer().train()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    with pytest.raises(OutputFolderInUseError, match="already holds a run"):
        make_trainer(max_steps=2).train()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before

    make_trainer(max_steps=2, overwrite_output_dir=True).train()
    assert [folder.name for folder in list_checkpoints(tmp_path / "out")] == ["checkpoint-2"]
    assert {line["step"] for line in runs.metrics(tmp_path / "out")} == {2}
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("resume_from", "message"), [("nowhere", "'nowhere' does not exist"), (".", "not a complete checkpoint")]
)
def test_a_checkpoint_that_is_none_is_refused(make_trainer: MakeTrainer, resume_from: str, message: str) -> None:
    """A wrong path to resume from is an error, not a new run."""
    with pytest.raises(CheckpointError, match=message):
        make_trainer(resume_from_checkpoint=resume_from).train()


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(make_trainer: MakeTrainer, tmp_path: Path, broken: str) -> None:
    """NaN names the step and the last good checkpoint; no weight and no file changes after it."""
    trainer = make_trainer(save_steps=2, eval_steps=0)
    train_step = trainer.train_step
    weights: list[torch.Tensor] = []

    def break_in_step_4(batches: Any) -> Any:
        if trainer.step == 3:
            weights.extend(weight.detach().clone() for weight in trainer.model.decoder.parameters())
            if broken == "loss":
                batches[0]["pixel_values"][0, 0, 0, 0] = float("nan")
            else:
                weight = next(trainer.model.decoder.parameters())
                weight.register_hook(lambda grad: grad * float("inf"))
        return train_step(batches)

    trainer.train_step = break_in_step_4
    with pytest.raises(NonFiniteLossError, match=r"(?s)in step 4 .*last good checkpoint is '.*checkpoint-2'"):
        trainer.train()

    assert all(map(torch.equal, trainer.model.decoder.parameters(), weights))
    assert [folder.name for folder in list_checkpoints(tmp_path / "out")] == ["checkpoint-2"]
    assert not (tmp_path / "out" / "final").exists()


class Stream(IterableDataset[dict[str, torch.Tensor]]):
    """A stream over a data set that knows its place."""

    def __init__(self, images: Any) -> None:
        self.images = images
        self.place = 0
        self.seen: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        """The place."""
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a place."""
        self.place = state["place"]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while self.place < len(self.images):
            self.place += 1
            self.seen.append(self.place)
            yield self.images[self.place - 1]
        self.place = 0


def test_a_stream_goes_on_at_its_place(make_trainer: MakeTrainer, tmp_path: Path, images: Any, runs: Any) -> None:
    """A resumed run on a stream continues where the checkpoint was, over the end of an epoch, with equal weights."""
    straight, first, second = (Stream(images(10)) for _ in range(3))
    make_trainer("straight", train=straight).train()
    stop_after(make_trainer("resumed", train=first), step=4)
    make_trainer("resumed", train=second, resume_from_checkpoint="latest").train()

    assert second.seen == straight.seen[12:]  # the checkpoint of step 3, with 4 images a step
    runs.assert_same_run(tmp_path / "straight", tmp_path / "resumed")
