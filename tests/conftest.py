"""Every test runs against a Hub on this machine, with caches of its own: nothing leaves the machine or stays on it.

The clients read their addresses once, when huggingface_hub is imported, so these are set before anything else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .hub_server import HubServer

if TYPE_CHECKING:
    from .run_comparison import Runs

if "huggingface_hub" in sys.modules:
    raise RuntimeError("huggingface_hub was imported before tests/conftest.py could direct it to the local Hub")

_SERVER = HubServer()
_HOME = tempfile.TemporaryDirectory(prefix="hf_home_", ignore_cleanup_errors=True)
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_CACHE"))]:
    del os.environ[_name]
os.environ |= {"HF_ENDPOINT": _SERVER.url, "HF_HOME": _HOME.name, "HF_HUB_DISABLE_XET": "1"}


# Marker -> the package whose older versions lack something, the version that brought it, and what it is.
_LATER: dict[str, tuple[str, tuple[int, int], str]] = {
    "compiles": ("torch", (2, 8), "compiling and exporting the models"),
    "shards": ("torch", (2, 7), "sharding weights with quantizers left whole"),
    "same_numbers": ("torch", (2, 8), "the floating point numbers of the stored runs"),
    "local_code": ("transformers", (5, 12), "loading the code of a local folder whose files import each other"),
    "module_names": ("transformers", (5, 20), "this name of a module in a backbone"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what the oldest versions that we support cannot do."""
    for name, (package, version, what) in _LATER.items():
        installed = metadata.version(package)
        if item.get_closest_marker(name) and tuple(map(int, installed.split(".")[:2])) < version:
            pytest.skip(f"{what} needs {package} {version[0]}.{version[1]}, this is {installed}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """An empty Hub and an empty cache, with alice logged in, in this process and in those it starts."""
    import huggingface_hub

    _SERVER.clear()
    cache = str(tmp_path_factory.mktemp("hub_cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", cache)
    monkeypatch.setenv("HF_HUB_CACHE", cache)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    # Clients wait up to 8 seconds before they try again.
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    yield _SERVER
    _SERVER.clear()


@pytest.fixture
def runs() -> Runs:
    """Comparisons of the folders of two runs."""
    from .run_comparison import Runs

    return Runs()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1,000 KiB, where the system lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
