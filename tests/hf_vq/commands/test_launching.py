"""Several processes for a command: how many there are, what is told of their end, and what signals do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.commands import launch as accelerate

from hf_vq.commands.launching import LauncherArguments, _free_port, launch, take_launcher_words

TINY = (
    "--config noto_emoji_32 --base_channels 8 --num_res_blocks 1 --num_codes 16 --max_steps 2 --train_batch_size 4 "
    "--max_eval_images 8 --eval_steps 0 --save_steps 0 --check_images_up_to 0 --use_cpu --disable_tqdm"
).split()
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*words: object, module: str = "hf_vq") -> subprocess.Popen[str]:
    """Starts a command."""
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was written."""
    try:
        text = "".join(process.communicate(timeout=240))
        return process.returncode, text
    finally:
        with suppress(psutil.NoSuchProcess):  # those that it has started are in sessions of their own
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()


def test_two_processes_are_two(tmp_path: Path) -> None:
    """On a machine without GPUs, too. Each message is written once; the launcher says nothing of its own."""
    words = ["train-tokenizer", *TINY, "--num_processes", "2", "--output_dir", tmp_path / "out"]
    code, text = finish(start(*words))

    assert code == 0, text
    assert "| processes | 2 x cpu |" in (tmp_path / "out" / "final" / "README.md").read_text()
    assert text.count("The finished model is in") == 1 and "elastic" not in text and "accelerate launch" not in text
    assert "Warning" not in text, text

    code, text = finish(start(*words))
    assert code == 1
    assert text.count("already holds a run") == 1 and "Traceback" not in text
    assert text.splitlines()[-1].startswith(f"error: '{tmp_path / 'out'}' already holds a run")


def test_accelerates_own_launcher_shows_the_error_last(tmp_path: Path) -> None:
    """The one line of two processes stands once above the launcher's words, and at their end."""
    words = "launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    command = f"--main_process_port {_free_port()} -m hf_vq.commands.train_tokenizer".split()
    run = start(*words[1:], *command, "--output_dir", tmp_path, "--use_cpu", module="accelerate.commands.launch")
    code, text = finish(run)

    assert code == 1 and text.partition("torch/distributed")[0].count("error: No data set is named.") == 1
    assert "error: No data set is named." in text[-300:]


def test_accelerates_simple_launcher_is_explained(tmp_path: Path) -> None:
    """Its traceback cannot be helped: the error says above it that it means nothing."""
    run = start("-m", "hf_vq.commands.train_tokenizer", "--output_dir", tmp_path, module="accelerate.commands.launch")
    code, text = finish(run)

    assert code == 1 and "error: No data set is named." in text
    assert "accelerate tells below of a failed command" in text.partition("Traceback")[0]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_signals_reach_the_processes(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    """Ctrl-C, or the end of a job: both save and end, then the launcher with their exit code, without traceback."""
    words = ["--num_processes", "2", "--max_steps", "100000", "--logging_steps", "1", "--output_dir", tmp_path / "out"]
    process = start("train-tokenizer", *TINY, *words)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "metrics.jsonl").is_file():
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.05)
    process.send_signal(sent)

    ended, text = finish(process)
    assert ended == code and "Traceback" not in text, text
    assert text.count(f"Stopped by {sent.name} after step") == 1
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1


def test_words_of_the_launcher_are_split_off() -> None:
    """In any place and spelling; the rest keeps its order."""
    words = "--output_dir out --num-processes 4 --report_to a b --gpu_ids=0,1 --num_codes 5 --accelerate_config c.yaml"
    settings, rest = take_launcher_words(words.split())

    assert settings == LauncherArguments(num_processes=4, gpu_ids="0,1", accelerate_config="c.yaml")
    assert rest == "--output_dir out --report_to a b --num_codes 5".split()
    with pytest.raises(ValueError, match="num_processes must be at least 1, got 0"):
        take_launcher_words(["--num_processes", "0"])


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Namespace]:
    """What accelerate's launcher of several processes was given, instead of starting them."""
    given: list[Namespace] = []
    monkeypatch.setattr(accelerate, "multi_gpu_launcher", given.append)
    for name in ("ACCELERATE_USE_CPU", "OMP_NUM_THREADS", "HF_VQ_LAUNCHED", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delenv("RANK", raising=False)
    return given


def run(settings: LauncherArguments, use_cpu: bool = False) -> Any:
    """The exit code of a launch."""
    with pytest.raises(SystemExit) as end:
        launch("train-tokenizer", ["--seed", "1"], settings, use_cpu)
    return end.value.code


def test_a_config_file_for_cpus_starts_all_its_processes(started: list[Namespace], tmp_path: Path) -> None:
    """accelerate itself starts one, without a word."""
    path = tmp_path / "cpus.yaml"
    path.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 3\nnum_machines: 1\n"
        "use_cpu: true\nmixed_precision: bf16\nmachine_rank: 0\n"
    )
    assert run(LauncherArguments(accelerate_config=str(path))) == 0

    assert started[0].num_processes == 3 and started[0].mixed_precision == "bf16"
    assert started[0].training_script_args == ["train-tokenizer", "--seed", "1"] and started[0].module
    assert os.environ["ACCELERATE_USE_CPU"] == "1"


def test_more_processes_than_gpus_are_refused(started: list[Namespace], monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless they are to be on CPUs, or on several machines."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes need 2 GPUs on this machine, and it has 1.*--use_cpu"):
        launch("train-tokenizer", [], LauncherArguments(num_processes=2))
    assert not started

    assert run(LauncherArguments(num_processes=2), use_cpu=True) == 0
    assert os.environ.pop("ACCELERATE_USE_CPU") == "1"
    two = LauncherArguments(
        num_processes=2, num_machines=2, machine_rank=0, main_process_ip="10.0.0.1", main_process_port=5
    )
    assert run(two) == 0
    assert [args.num_machines for args in started] == [1, 2] and "ACCELERATE_USE_CPU" not in os.environ


def test_one_process_takes_the_place_of_this_one(started: list[Namespace], monkeypatch: pytest.MonkeyPatch) -> None:
    """So signals and exit code are its own. torch chooses its threads."""
    become: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execvpe", lambda file, command, environment: become.append((command, environment)))
    run(LauncherArguments(num_processes=1, gpu_ids="1"))

    command, environment = become[0]
    assert command == [sys.executable, "-m", "hf_vq", "train-tokenizer", "--seed", "1"] and not started
    assert environment["CUDA_VISIBLE_DEVICES"] == "1" and "OMP_NUM_THREADS" not in environment


def test_a_launched_command_starts_no_processes(started: list[Namespace], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two launchers in each other would make the square of the processes."""
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="started by a launcher already"):
        launch("train-tokenizer", [], LauncherArguments(num_processes=2))
    assert not started
