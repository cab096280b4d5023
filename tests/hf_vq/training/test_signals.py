"""SIGTERM, SIGUSR1 and one Ctrl-C end a run in good order: it saves, says how to go on, and its status is known."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_vq.training import signals as module
from hf_vq.training.checkpoints import list_checkpoints
from hf_vq.training.signals import RunStopped, stop_signals

MakeTrainer = Callable[..., Any]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Every test leaves the handlers that it found. A program that was started in the background ignores Ctrl-C."""
    before = {number: signal.getsignal(number) for number in module.SIGNALS}
    ours = {number: signal.SIG_DFL for number in module.SIGNALS} | {signal.SIGINT: signal.default_int_handler}
    for number, handler in ours.items():
        signal.signal(number, handler)
    yield
    after = {number: signal.getsignal(number) for number in module.SIGNALS}
    for number, old in before.items():
        signal.signal(number, old)
    assert after == ours
    assert module._active is None


def signal_during(trainer: Any, method: str, step: int, signum: int) -> None:
    """Lets a method of a trainer, in step `step` (counted from 0), send this process a signal at its beginning."""
    original = getattr(trainer, method)

    def sending(*args: Any) -> Any:
        if trainer.step == step:
            os.kill(os.getpid(), signum)
        return original(*args)

    setattr(trainer, method, sending)


def test_a_run_that_signals_stopped_goes_on_to_the_same_bits(
    make_trainer: MakeTrainer, tmp_path: Path, everything: tuple[dict[str, Any], dict[str, Any]], runs: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Wherever the signal comes: in a step, in an evaluation, while data are read or a checkpoint is written."""
    fields, model = everything
    settings = {**fields, "max_steps": 9, "save_steps": 4}
    make_trainer("straight", model, **settings).train()

    for method, step, signum, saved in (
        ("train_step", 2, signal.SIGTERM, 3),
        ("evaluation", 4, signal.SIGUSR1, 4),
        ("to_device", 5, signal.SIGINT, 6),
        ("state_dict", 8, signal.SIGTERM, 9),  # too late to stop anything: the run ends as usual, one step later
    ):
        trainer = make_trainer("stopped", model, **settings, resume_from_checkpoint="latest")
        signal_during(trainer, method, step, signum)
        with caplog.at_level(logging.WARNING):
            if saved == 9:
                trainer.train()
                break
            with pytest.raises(RunStopped) as stopped:
                trainer.train()
        assert (stopped.value.code, stopped.value.step) == (128 + signum, saved)
        assert list_checkpoints(tmp_path / "stopped")[-1].name == f"checkpoint-{saved}"
        name = signal.Signals(signum).name
        assert f"Stopped by {name} after step {saved}, which is saved. The same command with --resume" in caplog.text
        assert f"{name}: the run finishes its step, saves a checkpoint, and ends." in caplog.text

    runs.assert_same_run(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_before_the_first_step_a_run_ends_at_once(
    make_trainer: MakeTrainer, tmp_path: Path, name: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """While a run starts there is nothing to save, and it says so."""
    trainer = make_trainer()
    signal_during(trainer, "_open_run", 0, getattr(signal, name))
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit) as stopped:
        trainer.train()
    assert stopped.value.code == code
    assert f"{name} before the first step: there is no checkpoint of this start to go on from." in caplog.text
    assert not list_checkpoints(tmp_path / "out")


def test_handlers_of_the_program_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that the program handles itself, or ignores, is not taken over; contexts nest."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with stop_signals() as outer, stop_signals() as inner:
            assert inner is outer
            os.kill(os.getpid(), signal.SIGUSR1)
            assert seen == [signal.SIGUSR1] and not outer.received
    finally:
        signal.signal(signal.SIGUSR1, before)


# Loads the one file, for the whole package takes seconds.
PROGRAM = """
import importlib.util, logging, multiprocessing, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
spec = importlib.util.spec_from_file_location("signals", sys.argv[1])
signals = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signals)
signals._SAME_SECONDS = float(sys.argv[2])
logging.basicConfig(format="%(message)s")
with signals.stop_signals() as stop, stop.deferred():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    print("child", child.exitcode, flush=True)
    while True:
        time.sleep(60)
"""


def test_a_second_ctrl_c_ends_at_once_and_children_end_as_ever() -> None:
    """Even a program that waits ends; a process that it forked is not kept by handlers that it inherited."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, module.__file__, "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == f"child {-signal.SIGTERM}\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "SIGINT: the run finishes its step, saves a checkpoint, and ends.\n"
    process.send_signal(signal.SIGTERM)  # asks for what is under way
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130


def test_a_ctrl_c_that_comes_twice_is_one() -> None:
    """From the terminal and from a launcher that hands it on."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, module.__file__, "1e9"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.kill()
    process.wait()
