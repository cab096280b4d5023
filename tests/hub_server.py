"""A Hub on this machine, for the real clients: the HTTP protocol of huggingface.co over a `HubStore`.

Two users, by their tokens: `hf_alice` and `hf_bob`. Failures are ordered with `HubServer.fail`. Not covered:
uploads in parts, pagination, rate limits, deduplicated ("xet") storage; set `HF_HUB_DISABLE_XET=1`.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Literal

from .hub_protocol import HubRequestHandler
from .hub_store import HubStore


@dataclass
class Failure:
    """Requests that go wrong: the `nth` of those that match, and `times - 1` after it."""

    methods: str
    path: str
    kind: Literal["error", "cut", "lost"]
    nth: int
    times: int
    seen: int = 0

    def strikes(self, method: str, path: str) -> bool:
        """Counts a request; says whether it is to fail."""
        if method not in self.methods.split() or not re.search(self.path, path):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


class HubServer:
    """The server, in threads of this process.

    Attributes:
        url: For `HF_ENDPOINT`.
        store: What it holds.
        requests: Method and path of each request, in order.
    """

    def __init__(self) -> None:
        handler = type("Handler", (HubRequestHandler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.lock = threading.RLock()
        self.clear()
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def clear(self) -> None:
        """Forgets repositories, requests and ordered failures."""
        with self.lock:
            self.store = HubStore()
            self.requests: list[tuple[str, str]] = []
            self.failures: list[Failure] = []

    def fail(
        self,
        methods: str,
        path: str,
        kind: Literal["error", "cut", "lost"] = "error",
        nth: int = 1,
        times: int = 10**9,
    ) -> None:
        """Lets requests fail from the `nth` match on, until `mend` or for so many times.

        Args:
            methods: Such as `"PUT POST"`.
            path: A regular expression to be found in the path.
            kind: `"error"` answers with status 500; `"cut"` closes the connection in the middle of the body, that of
                the request for PUT and POST, that of the answer for GET; `"lost"` does what was asked and closes the
                connection without an answer.
            nth: The first match to fail.
            times: How many fail.
        """
        self.failures.append(Failure(methods, path, kind, nth, times))

    def mend(self) -> None:
        """Ends the failures."""
        self.failures.clear()
