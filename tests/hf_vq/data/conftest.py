"""What the tests of token data sets share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import PartialState

from ...tiny_tokens import picture, save, tiny


@pytest.fixture
def one_thread_and_own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Arrow copies stay out of the user's cache, and Accelerate forgets its state."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    PartialState._reset_state()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tokenizer."""
    return save(tiny(), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eleven images in two classes."""
    for number in range(11):
        path = tmp_path / "images" / ("cats" if number % 3 else "dogs") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, (20 + number, 28)).save(path)
    return tmp_path / "images"
