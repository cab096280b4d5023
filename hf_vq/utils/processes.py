"""The processes of a run, and what they do together: sums that are equal to the bit, work of the main one for all."""

from __future__ import annotations

import io
import os
import pickle
import socket
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from hf_vq.utils.files import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

Result = TypeVar("Result")

# Seconds that processes wait for work whose length nobody knows, such as listing the files of a large data set.
PATIENCE = 7 * 24 * 3600.0
_DISKS = "Each node reads its own disks: put the same files into the same folder on all of them."
_node: tuple[Any, Any, Any, int] | None = None  # of the run: world, patient groups of all and of this node, its leader


def processes_of_run(use_cpu: bool = False, timeout: float | None = None) -> PartialState:
    """Joins the processes of a run; afterwards all share one state.

    Args:
        use_cpu: Whether to compute on the CPU although an accelerator is there.
        timeout: Seconds that a process may wait for the others. Half an hour by default.
    """
    from accelerate import PartialState  # which a core install lacks

    options: dict[str, Any] = {} if timeout is None else {"timeout": timedelta(seconds=timeout)}
    return PartialState(cpu=use_cpu or not torch.accelerator.is_available(), **options)


def sum_over_processes(tensor: torch.Tensor, accelerator: Accelerator | None = None) -> torch.Tensor:
    """The sum of all processes' tensors, on the CPU and the same to the bit on each of them; a collective.

    Args:
        tensor: Of the same shape everywhere.
        accelerator: Tells the device of the collective; without it the backend of ``torch.distributed`` does.
    """
    # Gathered and then summed in the order of ranks, the same on each: a ring's order differs from chunk to chunk.
    return torch.stack(gather_over_processes(tensor, accelerator)).sum(0)


def gather_over_processes(tensor: torch.Tensor, accelerator: Accelerator | None = None) -> list[torch.Tensor]:
    """The tensors of all processes in the order of their ranks, on the CPU; a collective. Arguments as above."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [tensor.detach().clone().cpu()]
    if accelerator is not None:
        device = accelerator.device
    else:
        device = torch.device("cuda" if "nccl" in torch.distributed.get_backend() else "cpu")
    parts = [torch.empty_like(tensor, device=device) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor.to(device))
    return [part.cpu() for part in parts]


@torch.no_grad()
def average_over_processes(tensors: list[torch.Tensor], accelerator: Accelerator) -> None:
    """Sets tensors to their mean over all processes, in place; a collective."""
    flat = accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def on_main_process(work: Callable[[], Result], accelerator: Accelerator | PartialState) -> Result:
    """Does something on the main process alone; a collective, so that no process is left waiting when it fails.

    Args:
        work: What to do. Its result must be picklable.
        accelerator: Tells the main process.

    Returns:
        The result of `work`, on all processes.

    Raises:
        Exception: On all processes, what `work` raised on the main one.
    """
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as reason:
            outcome[1] = reason
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def on_each_node(work: Callable[[], Result], state: PartialState) -> Result:
    """Does something on the first process of each node, which the others of the node get to know; a collective.

    The others wait as long as it takes, whatever the timeout of other collectives. So files are listed and downloaded
    once for each disk, and not by every process.

    Args:
        work: What to do. Its result must be picklable.
        state: The processes of the run.

    Returns:
        The result of `work` on this node.

    Raises:
        Exception: What `work` raised, if it failed everywhere.
        OSError: It failed on some nodes; the message names one.
    """
    if state.num_processes == 1:
        return work()
    _, own, leader = _patient_groups(state)
    outcome, problem = _tried(work) if state.process_index == leader else (None, None)
    _agree(problem, state)
    found: list[Any] = [outcome]
    torch.distributed.broadcast_object_list(found, src=leader, group=own)
    return found[0]


def on_every_process(work: Callable[[], Result], state: PartialState) -> Result:
    """Does something in each process, and on each node first in one, which downloads for the others; a collective.

    Args:
        work: What to do.
        state: The processes of the run.

    Returns:
        The result of `work` in this process.

    Raises:
        Exception: What `work` raised, if it failed everywhere.
        OSError: It failed in some processes; the message names one.
    """
    if state.num_processes == 1:
        return work()
    everyone, _, leader = _patient_groups(state)
    if state.process_index != leader:
        torch.distributed.barrier(group=everyone)
    outcome, problem = _tried(work)
    if state.process_index == leader:
        torch.distributed.barrier(group=everyone)
    _agree(problem, state)
    return outcome


def _tried(work: Callable[[], Result]) -> tuple[Any, Exception | None]:
    """The result of some work, or what it raised."""
    try:
        return work(), None
    except Exception as reason:
        return None, reason


def _agree(problem: Exception | None, state: PartialState) -> None:
    """Raises on all processes if one has a problem; a collective. Processes that were not asked have none."""
    told: list[Any] = [None] * state.num_processes
    everyone, _, leader = _patient_groups(state)
    torch.distributed.all_gather_object(told, (socket.gethostname(), leader, _sendable(problem)), group=everyone)
    failed = {rank: found for rank, found in enumerate(told) if found[2] is not None}
    if not failed:
        return
    bad_nodes = {node for _, node, _ in failed.values()}
    good = next((rank for rank, (_, node, _) in enumerate(told) if node not in bad_nodes), -1)
    own = problem or next((found for _, node, found in failed.values() if node == leader), None)
    if own is not None and good < 0:
        raise own
    if own is not None:
        raise OSError(f"{own}\nThe node of process {good} ({told[good][0]}) could go on. {_DISKS}") from own
    rank, (host, _, found) = next(iter(failed.items()))
    raise OSError(f"the node of process {rank} ({host}) cannot go on, this one could: {found}\n{_DISKS}")


def _sendable(problem: Exception | None) -> Exception | None:
    """An exception that survives the way to another process."""
    try:
        return pickle.loads(pickle.dumps(problem))
    except Exception:
        return OSError(str(problem))


def require_shared_folder(folder: Path, what: str, state: PartialState) -> None:
    """Makes sure that all processes see one folder under a name, that of the main process; a collective.

    Args:
        folder: The folder, which exists for the main process.
        what: What to call it.
        state: The processes of the run.

    Raises:
        OSError: On all processes, if one does not see it; the message names it.
    """
    if state.num_processes == 1:
        return
    mark = on_main_process(lambda: _leave_mark(folder), state)
    deadline = time.monotonic() + 10  # a shared file system may take a while to show it

    def look() -> str | None:
        while not (folder / mark).exists():
            if time.monotonic() > deadline:
                return socket.gethostname()
            time.sleep(0.2)
        return None

    blind: list[Any] = [None] * state.num_processes
    torch.distributed.all_gather_object(blind, look(), group=_patient_groups(state)[0])
    on_main_process(lambda: (folder / mark).unlink(missing_ok=True), state)
    rank = next((rank for rank, host in enumerate(blind) if host is not None), None)
    if rank is not None:
        raise OSError(
            f"{what} '{folder.absolute()}' of process 0 is not the one of process {rank} ({blind[rank]}): the nodes "
            "have separate disks there. All processes write into it, so choose a folder that all nodes share, or run "
            "on one node."
        )


def _leave_mark(folder: Path) -> str:
    """Writes an empty file with a name of its own into a folder."""
    descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=folder)
    os.close(descriptor)
    return Path(name).name


def read_on_main_process(read: Callable[[], Result], state: Accelerator | PartialState) -> Result:
    """What the main process reads, on all processes, which may be on nodes without that file; a collective.

    Tensors are sent one by one, so that no process holds a second copy of all of them.

    Args:
        read: Returns tensors on the CPU in plain containers.
        state: The processes of the run.

    Raises:
        Exception: On all processes, what `read` raised on the main one.
    """
    if state.num_processes == 1:
        return read()
    tensors: list[torch.Tensor] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> int | None:
            if not isinstance(value, torch.Tensor):
                return None
            tensors.append(value)
            return len(tensors) - 1

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, number: int) -> torch.Tensor:
            return tensors[number]

    def read_and_pack() -> tuple[bytes, list[tuple[torch.Size, torch.dtype]]]:
        file = io.BytesIO()
        Pickler(file).dump(read())
        return file.getvalue(), [(tensor.shape, tensor.dtype) for tensor in tensors]

    packed, kinds = on_main_process(read_and_pack, state)
    everyone = _patient_groups(state)[0]
    for number, (shape, dtype) in enumerate(kinds):
        if state.is_main_process:
            tensors[number] = tensors[number].contiguous()
        else:
            tensors.append(torch.empty(shape, dtype=dtype))
        if tensors[number].numel():  # as bytes, for gloo does not send every type
            torch.distributed.broadcast(tensors[number].reshape(-1).view(torch.uint8), 0, group=everyone)
    return Unpickler(io.BytesIO(packed)).load()


def require_same_places(names: Iterable[str | None], state: PartialState) -> None:
    """Makes sure that what is a file or folder for one process is one for all, and no Hub id for some; a collective.

    Args:
        names: Folders, files or Hub ids; None is left out.
        state: The processes of the run.

    Raises:
        FileNotFoundError: On all processes, if one of them lacks what another has.
    """
    if state.num_processes == 1:
        return
    here = {name: Path(name).expanduser().exists() for name in names if name is not None}
    told: list[Any] = [None] * state.num_processes
    torch.distributed.all_gather_object(told, (socket.gethostname(), here), group=_patient_groups(state)[0])
    for name in here:
        have, lack = (
            [rank for rank, (_, there) in enumerate(told) if there[name] == which] for which in (True, False)
        )
        if have and lack:
            raise FileNotFoundError(
                f"'{name}' is there for process {have[0]} ({told[have[0]][0]}), but not for process {lack[0]} "
                f"({told[lack[0]][0]}). {_DISKS}"
            )


def require_equal_on_nodes(value: Any, what: str, state: PartialState) -> None:
    """Makes sure that each node found the same, of a data set on its own disk for one; a collective.

    Args:
        value: What this process found.
        what: What to call it.
        state: The processes of the run.

    Raises:
        ValueError: On all processes, if one of another node found something else; the message says which found what.
    """
    if state.num_processes == 1:
        return
    found: list[Any] = [None] * state.num_processes
    torch.distributed.all_gather_object(found, (socket.gethostname(), value), group=_patient_groups(state)[0])
    others = [rank for rank, (_, other) in enumerate(found) if other != found[0][1]]
    if others:
        rank = others[0]
        raise ValueError(
            f"nodes see different data: process 0 ({found[0][0]}) finds {found[0][1]} {what}, process {rank} "
            f"({found[rank][0]}) finds {found[rank][1]}. Put the same files into the same folder on each node."
        )


def _patient_groups(state: Accelerator | PartialState) -> tuple[Any, Any, int]:
    """Groups of all processes and of those of this node, which wait for days, and the rank of the node's first one."""
    global _node
    world = torch.distributed.group.WORLD
    if _node is None or _node[0] is not world:
        everyone = torch.distributed.new_group(timeout=timedelta(seconds=PATIENCE), backend="gloo")
        leaders: list[int] = [0] * state.num_processes
        first = state.process_index - state.local_process_index
        torch.distributed.all_gather_object(leaders, first, group=everyone)
        own = None
        for leader in sorted(set(leaders)):  # all processes make all groups
            members = [rank for rank, other in enumerate(leaders) if other == leader]
            group = torch.distributed.new_group(members, timeout=timedelta(seconds=PATIENCE), backend="gloo")
            own = group if leader == first else own
        _node = (world, everyone, own, first)
    return _node[1:]
