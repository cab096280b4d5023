"""Signals that end a run in good order: SIGTERM, SIGUSR1, and one Ctrl-C.

A scheduler sends SIGTERM (or SIGUSR1, where it was told so) some time before it kills. The run finishes its step,
saves a checkpoint, and ends with the exit status that shells and schedulers know: 128 and the signal's number, so 143
for SIGTERM, 130 for Ctrl-C, 138 for SIGUSR1. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
# Launchers hand on a Ctrl-C that a terminal has sent to the whole group, too. So close together, two are one.
_SAME_SECONDS = 1.0

logger = logging.getLogger(__name__)


class RunStopped(SystemExit):
    """A signal has ended a run. Where nobody catches it, the program ends with 128 and the signal's number.

    Args:
        signum: The signal.
        step: The step of the checkpoint that the run has written; None if it ended before its first step.
    """

    def __init__(self, signum: int, step: int | None = None) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.step = step
        if step is not None:
            logger.warning(
                "Stopped by %s after step %d, which is saved. The same command with --resume_from_checkpoint latest "
                "goes on from there.",
                signal.Signals(signum).name,
                step,
            )


class StopSignals:
    """The signals of this process, while `stop_signals` is open.

    Attributes:
        received: The first signal that came; 0 before.
    """

    def __init__(self) -> None:
        self.received = 0
        self._deferred = False
        self._began = 0.0  # when the first signal came

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the context a signal is only noted, in `received`; outside it raises `RunStopped` where it comes."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, signum: int, frame: Any) -> None:
        if not self.received:
            self.received = signum
            if not self._deferred:
                raise RunStopped(signum)

    def _watch(self, pipe: int) -> None:
        """Tells about signals, and ends the process at the second Ctrl-C, also while it waits in a library."""
        while signum := os.read(pipe, 1)[0]:
            now = time.monotonic()
            if signum not in SIGNALS:
                continue
            if not self._began:
                self._began = now
                name = signal.Signals(signum).name
                if self._deferred:
                    logger.warning("%s: the run finishes its step, saves a checkpoint, and ends.", name)
                else:
                    logger.warning(
                        "%s before the first step: there is no checkpoint of this start to go on from. "
                        "The same command starts it again.",
                        name,
                    )
            elif signum == signal.SIGINT and now - self._began > _SAME_SECONDS:
                os._exit(128 + signum)


_active: StopSignals | None = None


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Takes over SIGTERM, SIGUSR1 and Ctrl-C; within another such context it is that one.

    A signal for which the program has a handler of its own stays with it, and outside of the main thread, which alone
    gets signals, nothing changes.
    """
    global _active
    if _active is not None:
        yield _active
        return
    signals = StopSignals()
    ours = [number for number in SIGNALS if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)]
    if threading.current_thread() is not threading.main_thread() or not ours:
        yield signals
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=signals._watch, args=(reading,), name="stop_signals", daemon=True)
    before = {number: signal.signal(number, signals._handle) for number in ours}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher.start()
    _active = signals
    try:
        yield signals
    finally:
        _active = None
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writing, b"\0")  # ends the watcher, once it has read what is left
        watcher.join()
        os.close(writing)
        os.close(reading)


# A process that this one forks, to read data for example, ends when its parent says so. Signals wait while it is made:
# otherwise one could meet the parent's handlers in the child, and be lost.


def _before_fork() -> None:
    if _active is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork_in_parent() -> None:
    if _active is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _after_fork_in_child() -> None:
    if _active is not None:
        with suppress(ValueError):  # forked by another thread
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
