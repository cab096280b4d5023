# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Fetches the file at a URL, within limits of size and time."""

import threading
import time

from huggingface_hub import get_session

MAX_BYTES = 2**28
"""The largest file that is fetched: 256 MiB."""
MAX_SECONDS = 60.0
"""How long a file may take in all, from the first connection to its last byte."""
_SILENCE = 30.0  # seconds without an answer


def fetch(url: str) -> bytes:
    """The bytes at a URL.

    Args:
        url: An address that starts with http:// or https://.

    Raises:
        TimeoutError: The server takes longer than `MAX_SECONDS` in all.
        ValueError: The file is larger than `MAX_BYTES`.
        Exception: Whatever the connection or an error status raises.
    """
    deadline, found = time.monotonic() + MAX_SECONDS, _Found()
    # In a thread of its own: a server that sends the head of its answer byte by byte is never silent for long.
    thread = threading.Thread(target=_receive, args=(url, deadline, found), daemon=True)
    thread.start()
    thread.join(MAX_SECONDS + 1)
    if thread.is_alive():
        found.error = _late()
    if found.error is not None:
        raise found.error
    return bytes(found.content)


class _Found:
    """What a thread received, or the error that it met."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.error: Exception | None = None


def _receive(url: str, deadline: float, found: _Found) -> None:
    try:
        # Uncompressed, so that no small answer becomes a large one.
        headers = {"Accept-Encoding": "identity"}
        with get_session().stream("GET", url, timeout=_SILENCE, headers=headers) as response:
            response.raise_for_status()
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise ValueError(f"the server compresses the file ({encoding}), although it was asked not to")
            if int(response.headers.get("Content-Length", 0)) > MAX_BYTES:
                raise _large()
            for part in response.iter_raw():
                found.content += part
                if len(found.content) > MAX_BYTES:
                    raise _large()
                if time.monotonic() > deadline:
                    raise _late()
    except Exception as error:
        found.error = error


def _large() -> ValueError:
    return ValueError(f"the file has more than {MAX_BYTES:,} bytes, the most that is fetched from a URL")


def _late() -> TimeoutError:
    return TimeoutError(f"the server has not sent the whole file within {MAX_SECONDS:g} seconds")


__all__ = ["MAX_BYTES", "MAX_SECONDS", "fetch"]
