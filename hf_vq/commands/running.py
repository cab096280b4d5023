"""What all commands share: where messages go, and how a command ends that cannot go on."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import huggingface_hub
import transformers
from huggingface_hub.errors import StrictDataclassError

LAUNCHED = "HF_VQ_LAUNCHED"
"""Set in processes that a command of ours has started: it tells what ended them."""

_ACCELERATE_HINT = (
    "accelerate tells below of a failed command. That says no more than this line. The commands of hf-vq start their "
    "processes themselves, without it: --num_processes 8."
)


def command(work: Callable[[list[str]], None]) -> Callable[..., None]:
    """Makes a command's `main(argv=None)` of a function that takes the words after the command's name.

    Of several processes the first one alone writes messages. An error that `errors_in_a_line` has made a line of is
    written once, also where each process meets it, and what started the processes gets to know it.
    """

    @functools.wraps(work)
    def main(argv: Sequence[str] | None = None) -> None:
        _set_up_messages()
        try:
            work(list(sys.argv[1:] if argv is None else argv))
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except SystemExit as end:
            if isinstance(end.code, str):
                _tell_launcher(end.code)
            raise

    del main.__wrapped__  # type: ignore[attr-defined]
    return main


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """Ends the command with one line for an error that its user can mend."""
    try:
        yield
    except (ValueError, OSError, ImportError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from None


def is_main_process() -> bool:
    """Whether this is the only process of a run, or the first one."""
    return os.environ.get("RANK", "0") == "0"


def _set_up_messages() -> None:
    """Messages of the main process go to stderr as they are; other processes keep to errors."""
    level = logging.INFO if is_main_process() else logging.ERROR
    logging.basicConfig(format="%(message)s", level=level)
    for name in ("huggingface_hub", "datasets"):  # they have handlers of their own, and would say all twice
        logging.getLogger(name).propagate = False
    for name in ("httpx", "httpx2"):  # a line for each request
        logging.getLogger(name).setLevel(logging.WARNING)
    if not is_main_process():
        warnings.simplefilter("ignore")
    if not (is_main_process() and sys.stderr.isatty()):  # in a log a bar is a heap of lines
        huggingface_hub.utils.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
        if "datasets" in sys.modules:
            sys.modules["datasets"].disable_progress_bars()


def _tell_launcher(message: str) -> None:
    """Hands the line that ends this process to what started it; raises if that is who writes it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        if "ACCELERATE_MIXED_PRECISION" in os.environ and LAUNCHED not in os.environ:
            raise SystemExit(f"{message}\n\n({_ACCELERATE_HINT})")
        return
    # torch's launchers show it below their own words, as the message of the process that failed first.
    record: dict[str, Any] = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record, file)
    if LAUNCHED in os.environ or not is_main_process():
        raise SystemExit(1)
