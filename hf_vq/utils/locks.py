"""A lock on a folder, which a process that died does not keep."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

LOCK_FILE = "run.lock"
HEARTBEAT = 10.0  # seconds between two signs of life
EXPIRY = 60.0  # after so many seconds without one, a lock of another host counts as left behind

logger = logging.getLogger(__name__)

_open: set[int] = set()


def _close_in_child() -> None:
    """A forked worker must not keep the lock of a parent that died."""
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()


os.register_at_fork(after_in_child=_close_in_child)


class FolderLockedError(RuntimeError):
    """Another process holds the lock of a folder."""


class FolderLock:
    """Keeps other processes out of a folder.

    On one host the kernel holds the lock (`flock`), and lets go of it when the process ends, however it ends. Not all
    shared file systems pass that on to other hosts. For them the file names host and process of the owner, and its
    time of change is a sign of life.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_FILE
        self.descriptor: int | None = None
        self.stopped = threading.Event()

    def acquire(self) -> None:
        """Takes the lock. That of another host, which may be dead, is waited for, with a warning.

        Raises:
            FolderLockedError: Another process has it; the message names it.
            OSError: The folder cannot be written to.
        """
        descriptor, by_kernel = self._locked_file()
        try:
            self._wait_until_silent(by_kernel)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self.descriptor = descriptor
        _open.add(descriptor)
        threading.Thread(target=self._beat, args=(descriptor, self.stopped), daemon=True).start()

    def release(self) -> None:
        """Gives the lock back, if this object has it."""
        if self.descriptor is None:
            return
        self.stopped.set()
        _open.discard(self.descriptor)
        self.path.unlink(missing_ok=True)  # while it is locked: whoever opened it meanwhile sees that it is gone
        os.close(self.descriptor)
        self.descriptor = None

    def _locked_file(self) -> tuple[int, bool]:
        """The open file, and whether the kernel holds the lock; some file systems cannot."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as reason:
                if reason.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    return descriptor, False
                os.close(descriptor)
                if reason.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise FolderLockedError(f"{_named(self._owner())} works in it") from None
                raise
            try:
                if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    return descriptor, True
            except FileNotFoundError:
                pass
            os.close(descriptor)  # its owner removed it between the two calls

    def _wait_until_silent(self, by_kernel: bool) -> None:
        """Waits until a lock of another host has expired, or refuses it after a sign of life."""
        owner = self._owner()
        if owner is None or (by_kernel and owner["host"] == socket.gethostname()):
            return
        last = self.path.stat().st_mtime
        if (silent := self._now() - last) < EXPIRY:
            logger.warning(
                "%s worked in '%s' %.0f seconds ago. Without a sign of life in the next %.0f seconds it counts as "
                "dead. Waiting.",
                _named(owner),
                self.path.parent,
                max(0, silent),
                EXPIRY - silent,
            )
        while (left := last + EXPIRY - self._now()) > 0:
            time.sleep(min(1.0, left))
            if not self.path.exists() or self.path.stat().st_mtime != last:
                raise FolderLockedError(f"{_named(owner)} works in it, or just did")

    def _now(self) -> float:
        """The time by the clock of the file system, which need not be this host's."""
        with tempfile.TemporaryFile(dir=self.path.parent) as probe:
            return os.fstat(probe.fileno()).st_mtime

    def _owner(self) -> dict[str, Any] | None:
        """Who wrote the file; None if nobody did."""
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
            return {"host": str(owner["host"]), "process": int(owner["process"])}
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @staticmethod
    def _beat(descriptor: int, stopped: threading.Event) -> None:
        while not stopped.wait(HEARTBEAT):
            try:
                os.utime(descriptor)
            except OSError:
                return


def _named(owner: dict[str, Any] | None) -> str:
    return "another process" if owner is None else f"process {owner['process']} on host '{owner['host']}'"
