"""One process works in a folder at a time; one that died, or is silent on another host, does not count."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_vq.utils.locks import EXPIRY, LOCK_FILE, FolderLock, FolderLockedError

HOLD = """
import os, sys, time
from pathlib import Path
from hf_vq.utils.locks import FolderLock

FolderLock(Path(sys.argv[1])).acquire()
child = os.fork()  # as a worker of a data loader, which outlives its parent for a while
if child == 0:
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""


def test_a_killed_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    """While it lives, it is named; once killed, the lock is free at once, though a forked worker still lives."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        with pytest.raises(FolderLockedError, match=f"process {process.pid} on host '"):
            FolderLock(tmp_path).acquire()
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(worker, 0)  # it lives

        lock = FolderLock(tmp_path)
        lock.acquire()
        lock.release()
        assert not list(tmp_path.iterdir())
    finally:
        os.kill(worker, signal.SIGKILL)
        process.kill()


def _leave_lock_of_another_host(folder: Path, silent: float = 0.0) -> Path:
    path = folder / LOCK_FILE
    path.write_text(json.dumps({"host": "elsewhere", "process": 7}))
    os.utime(path, (time.time() - silent,) * 2)
    return path


def test_a_lock_of_another_host_expires(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A minute after its last sign of life it is free at once, without a word."""
    _leave_lock_of_another_host(tmp_path, silent=EXPIRY + 1)
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    assert not caplog.records
    lock.release()


def test_a_dead_process_of_another_host_is_waited_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is restarted on another host says what it waits for, and for how long, and then begins."""
    monkeypatch.setattr("hf_vq.utils.locks.EXPIRY", 0.4)
    _leave_lock_of_another_host(tmp_path)
    lock = FolderLock(tmp_path)
    lock.acquire()
    lock.release()
    assert re.search(
        r"process 7 on host 'elsewhere' worked in '.*' 0 seconds ago.*counts as dead. Waiting", caplog.text
    )


def test_a_living_process_of_another_host_keeps_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next sign of life ends the waiting."""
    path = _leave_lock_of_another_host(tmp_path)
    monkeypatch.setattr("hf_vq.utils.locks.time.sleep", lambda seconds: os.utime(path, (time.time() + 1,) * 2))
    with pytest.raises(FolderLockedError, match="process 7 on host 'elsewhere' works in it"):
        FolderLock(tmp_path).acquire()
    assert "elsewhere" in path.read_text()


def test_the_owner_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's time of change moves on by itself."""
    monkeypatch.setattr("hf_vq.utils.locks.HEARTBEAT", 0.01)
    lock = FolderLock(tmp_path)
    lock.acquire()
    os.utime(tmp_path / LOCK_FILE, (1, 1))
    deadline = time.monotonic() + 10
    while (tmp_path / LOCK_FILE).stat().st_mtime < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()
