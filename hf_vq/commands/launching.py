"""Several processes for a command: it starts them with `accelerate launch`, and ends as they end."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from transformers import PreTrainedConfig

from hf_vq.commands.parsing import Arguments, parse_command_line
from hf_vq.commands.running import LAUNCHED


@dataclass
class LauncherArguments:
    """How many processes do the work, and where they are. With none of these fields it is this one."""

    num_processes: int | None = field(
        default=None,
        metadata={
            "help": "Processes to start, on all machines together: one for each GPU, or on CPUs where there are none.",
        },
    )
    gpu_ids: str | None = field(default=None, metadata={"help": "GPUs of this machine to use, such as 0,1."})
    num_machines: int | None = field(default=None, metadata={"help": "Machines; give the command on each of them."})
    machine_rank: int | None = field(default=None, metadata={"help": "The number of this machine, from 0."})
    main_process_ip: str | None = field(default=None, metadata={"help": "Address of machine 0."})
    main_process_port: int | None = field(default=None, metadata={"help": "Free port of machine 0."})
    num_cpu_threads_per_process: int | None = field(
        default=None, metadata={"help": "Threads of each process that compute on the CPU."}
    )
    accelerate_config: str | None = field(
        default=None, metadata={"help": "File that `accelerate config` wrote, which says all of this and more."}
    )

    def __post_init__(self) -> None:
        for name in ("num_processes", "num_machines", "num_cpu_threads_per_process"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    def words(self) -> list[str]:
        """These settings as options of `accelerate launch`."""
        names = {"accelerate_config": "config_file"}
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return [word for name, value in given.items() for word in (f"--{names.get(name, name)}", str(value))]


def read_or_launch(
    name: str,
    arguments_class: type[Arguments],
    config_class: type[PreTrainedConfig] | None,
    words: list[str],
    description: str | None,
) -> tuple[Arguments, dict[str, Any]]:
    """Reads a command line, as `parse_command_line` does. If it asks for processes, these do the rest.

    Args:
        name: The command's name.
        arguments_class: The dataclass of its settings, with `use_cpu`.
        config_class: The model's configuration class, or None.
        words: The words after the command's name.
        description: Shown by `--help`.

    Returns:
        The settings, and the keyword arguments for `config_class`.

    Raises:
        ValueError: For a field that does not exist, a wrong value, or processes that cannot be started.
        SystemExit: After the processes have ended.
    """
    launcher, words = take_launcher_words(words)
    arguments, model = parse_command_line(
        arguments_class, config_class, words, description, prog=f"hf-vq {name}", other_fields=LauncherArguments
    )
    if launcher != LauncherArguments():
        launch(name, words, launcher, use_cpu=arguments.use_cpu)  # type: ignore[attr-defined]
    return arguments, model


def take_launcher_words(words: Sequence[str]) -> tuple[LauncherArguments, list[str]]:
    """Splits the launcher's settings off the words of a command line."""
    names = {field.name for field in dataclasses.fields(LauncherArguments)}
    taken: list[str] = []
    rest: list[str] = []
    target = rest
    for word in words:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            name = option.removeprefix("--").replace("-", "_")
            target = taken if name in names else rest
            word = f"--{name}{equals}{value}" if name in names else word
        target.append(word)
    return parse_command_line(LauncherArguments, None, taken)[0], rest


def launch(name: str, words: Sequence[str], settings: LauncherArguments, use_cpu: bool = False) -> NoReturn:
    """Does the work of a command in the processes that the settings ask for, and ends this one as they end.

    Args:
        name: The command's name.
        words: Its command line, without these settings.
        settings: Which processes.
        use_cpu: Whether they compute on CPUs although there are GPUs.

    Raises:
        SystemExit: Always. Its code is that of the first process that failed, or 128 plus the number of the signal
            that ended this one, which it has passed on.
        ValueError: The settings contradict each other or this machine.
    """
    from accelerate.commands import launch as accelerate
    from accelerate.commands.config.config_args import default_config_file
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if "RANK" in os.environ:
        raise ValueError(
            "--num_processes and its like are for a command that starts its processes itself, and this one was "
            "started by a launcher already. Give them to the launcher."
        )
    options = settings.words()
    if settings.accelerate_config is None and not os.path.isfile(default_config_file):
        # What accelerate takes where it has no config file, said here so that it does not warn of it.
        said = dataclasses.replace(
            settings, num_processes=settings.num_processes or 1, num_machines=settings.num_machines or 1
        )
        options = [*said.words(), *"--mixed_precision no --dynamo_backend no".split()]
        if settings.main_process_port is None and said.num_machines == 1:
            options += ["--main_process_port", str(_free_port())]
    on_cpu = use_cpu or not torch.accelerator.is_available()
    os.environ[LAUNCHED] = "1"
    if settings.num_cpu_threads_per_process is not None:
        os.environ["OMP_NUM_THREADS"] = str(settings.num_cpu_threads_per_process)
    # The seconds that a process has after a signal to write its checkpoint; torch would kill it after 30.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    for library in ("torch.distributed", "accelerate"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what ended a process is said below, in one line
    many = accelerate.multi_gpu_launcher

    def pass_on(signum: int, frame: Any) -> None:
        raise SignalException(f"got signal {signum}", sigval=signal.Signals(signum))

    def start(args: argparse.Namespace) -> None:
        """Stands for two launchers of accelerate. Its simple one starts one process, whatever number it is given."""
        if args.num_processes > 1:
            _fit_to_machine(args, on_cpu)
            if hasattr(signal, "SIGUSR1"):  # a signal that trainers know and torch's launcher does not
                signal.signal(signal.SIGUSR1, pass_on)
            many(args)
        else:
            _become(args)

    launchers = accelerate.simple_launcher, accelerate.multi_gpu_launcher
    accelerate.simple_launcher = accelerate.multi_gpu_launcher = start
    try:
        accelerate.launch_command(
            accelerate.launch_command_parser().parse_args([*options, "--module", "hf_vq", name, *words])
        )
    except SignalException as ended:
        raise SystemExit(128 + ended.sigval) from None
    except ChildFailedError as failed:
        raise SystemExit(_told(*failed.get_first_failure())) from None
    finally:
        accelerate.simple_launcher, accelerate.multi_gpu_launcher = launchers
    raise SystemExit(0)


def _free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _fit_to_machine(args: argparse.Namespace, on_cpu: bool) -> None:
    """Puts the processes on CPUs, or sees to it that each has a GPU."""
    here = args.num_processes // args.num_machines
    if on_cpu or args.cpu or args.use_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "1"
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // here)))
    elif here > torch.accelerator.device_count():
        raise ValueError(
            f"{here} processes need {here} GPUs on this machine, and it has {torch.accelerator.device_count()}. "
            "Give a smaller --num_processes, or --use_cpu for processes on CPUs."
        )


def _become(args: argparse.Namespace) -> NoReturn:
    """Turns this process into the one that is asked for, so that signals and exit code are its own."""
    from accelerate.utils import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(args)
    if "OMP_NUM_THREADS" not in os.environ:
        environment.pop("OMP_NUM_THREADS")  # accelerate sets one thread; torch knows better
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], command, environment)


def _told(rank: int, failure: Any) -> int:
    """Writes what ended the first process that failed; returns the exit code of a command that it ends."""
    signal_name, code = failure.signal_name(), failure.exitcode
    message = failure.message["message"] if isinstance(failure.message, dict) else None
    if code < 0:
        message, code = f"error: process {rank} was ended by {signal_name}.", 128 - code
    elif message is None and code < 128:  # above, the process was asked to stop by a signal
        message = f"error: process {rank} ended with exit code {code}. What it wrote is above."
    if message is not None:
        print(message, file=sys.stderr)
    return code
