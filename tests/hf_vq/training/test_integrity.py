"""A checkpoint is used only as it was written. A damaged one is named, and the newest good one takes its place."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_vq.training.checkpoints import (
    STATE_FILE,
    CheckpointError,
    DamagedCheckpointError,
    list_checkpoints,
    verify_checkpoint,
)

MakeTrainer = Callable[..., Any]
FILES = ["config.json", "model.safetensors", "ema.safetensors", "training_state.pt", "rank_states.pt", STATE_FILE]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of `finished` is kept for the next test."""
    return tmp_path_factory.mktemp("kept") / "out"


@pytest.fixture
def finished(make_trainer: MakeTrainer, tmp_path: Path, kept: Path) -> Path:
    """A run with checkpoints 2 and 4."""
    if not kept.exists():
        make_trainer(max_steps=4, save_steps=2, use_ema=True).train()
        shutil.copytree(tmp_path / "out", kept)
    return Path(shutil.copytree(kept, tmp_path / "out", dirs_exist_ok=True))


def flip_a_bit(path: Path, place: float = 0.5) -> None:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    """Takes the second half of a file away."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path: Path) -> None:
    """Deletes a file."""
    path.unlink()


def change_state(folder: Path, hashes: bool = False, **fields: Any) -> None:
    """Writes other values into a state file, and takes the hashes out, as if version 0.1.0 had written it."""
    state = json.loads((folder / STATE_FILE).read_text())
    if not hashes:
        del state["files"], state["sha256"]
    (folder / STATE_FILE).write_text(json.dumps(state | fields))


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, remove])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_older_checkpoint_goes_on(
    name: str,
    damage: Callable[[Path], None],
    finished: Path,
    make_trainer: MakeTrainer,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    runs: Any,
) -> None:
    """The run ends as it did before, and the damaged checkpoint stays, under another name."""
    shutil.copytree(finished, tmp_path / "before")
    damage(finished / "checkpoint-4" / name)

    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(max_steps=4, save_steps=2, use_ema=True, resume_from_checkpoint="latest")
        trainer.train()

    named = [f"checkpoint-4/{name}' is damaged", f"checkpoint-4' is damaged: {name} ", f"it has no {name}"]
    assert any(words in caplog.text for words in named)
    assert "checkpoint-2'" in caplog.text
    assert (finished / "superseded-checkpoint-4").is_dir()
    runs.assert_same_run(tmp_path / "before", finished)


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_no_bit_flips_unseen(name: str, place: float, finished: Path) -> None:
    """Wherever the bit is, be it in weights or in the description, the checkpoint counts as damaged."""
    assert verify_checkpoint(finished / "checkpoint-4")
    flip_a_bit(finished / "checkpoint-4" / name, place)
    with pytest.raises(DamagedCheckpointError, match="checkpoint-4"):
        verify_checkpoint(finished / "checkpoint-4")


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize(
    "fields", [{"step": 10**9}, {"step": -1}, {"step": "4"}, {"step": 4.0}, {"step": True}, {"eval_metrics": [1]}]
)
def test_a_state_that_cannot_be_is_damage(
    fields: dict[str, Any], hashes: bool, finished: Path, make_trainer: MakeTrainer
) -> None:
    """With hashes or without, the step of the folder counts, and the run goes on from the checkpoint before."""
    change_state(finished / "checkpoint-4", hashes, **fields)

    trainer = make_trainer(max_steps=4, save_steps=2, use_ema=True, resume_from_checkpoint="latest")
    steps: list[int] = []
    train_step = trainer.train_step

    def counting(batches: Any) -> Any:
        steps.append(trainer.step)
        return train_step(batches)

    trainer.train_step = counting
    trainer.train()

    assert steps == [2, 3]
    assert trainer.step == 4


def test_a_checkpoint_after_the_last_step_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """A run of 2 steps does not publish the weights of step 4 as its own."""
    make_trainer(lr_scheduler="constant", max_steps=4).train()
    shutil.rmtree(tmp_path / "out" / "final")

    with pytest.raises(CheckpointError, match=r"checkpoint-4' is at step 4, after the last step.*max_steps is 2"):
        make_trainer(lr_scheduler="constant", max_steps=2, resume_from_checkpoint="latest").train()
    assert not (tmp_path / "out" / "final").exists()


def test_a_named_checkpoint_that_is_damaged_is_refused(finished: Path, make_trainer: MakeTrainer) -> None:
    """Who asks for one checkpoint does not get another one."""
    flip_a_bit(finished / "checkpoint-2" / "model.safetensors")
    settings = {"max_steps": 4, "save_steps": 2, "use_ema": True}

    with pytest.raises(DamagedCheckpointError, match=r"checkpoint-2' is damaged: model.safetensors"):
        make_trainer(**settings, resume_from_checkpoint=str(finished / "checkpoint-2")).train()
    assert [folder.name for folder in list_checkpoints(finished)] == ["checkpoint-2", "checkpoint-4"]


def test_a_run_without_a_good_checkpoint_does_not_begin_anew(finished: Path, make_trainer: MakeTrainer) -> None:
    """Each checkpoint is named with what is wrong with it, and nothing changes."""
    flip_a_bit(finished / "checkpoint-2" / "model.safetensors")
    cut_off(finished / "checkpoint-4" / STATE_FILE)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}

    with pytest.raises(DamagedCheckpointError, match=r"(?s)is whole:.*checkpoint-4.*checkpoint-2.*new run"):
        make_trainer(max_steps=4, save_steps=2, use_ema=True, resume_from_checkpoint="latest").train()
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_without_hashes_a_checkpoint_loads_and_says_so(
    finished: Path, make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    """Version 0.1.0 wrote none; of two such checkpoints the newer one that can be read is taken."""
    for step in (2, 4):
        change_state(finished / f"checkpoint-{step}")
    cut_off(finished / "checkpoint-4" / "model.safetensors")

    with caplog.at_level(logging.WARNING):
        make_trainer(max_steps=4, save_steps=2, use_ema=True, resume_from_checkpoint="latest").train()
    assert "model.safetensors' is damaged: it cannot be read" in caplog.text
    assert "checkpoint-2' has no hashes, as version 0.1.0 wrote it: its content was not verified" in caplog.text
    assert verify_checkpoint(finished / "checkpoint-4")
