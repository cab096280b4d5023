"""Every test runs against a Hub on this machine, with caches of its own: nothing leaves the machine or stays on it.

The clients read their addresses once, when huggingface_hub is imported, so these are set before anything else.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest

from .hub_server import HubServer

if "huggingface_hub" in sys.modules:
    raise RuntimeError("huggingface_hub was imported before tests/conftest.py could direct it to the local Hub")

_SERVER = HubServer()
_HOME = tempfile.TemporaryDirectory(prefix="hf_home_", ignore_cleanup_errors=True)
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_CACHE"))]:
    del os.environ[_name]
os.environ |= {"HF_ENDPOINT": _SERVER.url, "HF_HOME": _HOME.name, "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub, with alice logged in, in this process and in those it starts."""
    _SERVER.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    yield _SERVER
    _SERVER.clear()
