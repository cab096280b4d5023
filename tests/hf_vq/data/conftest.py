"""What the tests of token data sets share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import PartialState

from ...tiny_tokens import picture, save, tiny
from .pictures import noise


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the Arrow copies of parquet files out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread computes, and Accelerate forgets its state."""
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images in two classes, at two depths."""
    for number in range(6):
        path = tmp_path / "images" / ("cats" if number % 2 else "dogs/brown") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(40, 32, number).save(path)
    return tmp_path / "images"


@pytest.fixture
def damaged(folder: Path) -> Path:
    """The folder, with one truncated image and one text file that is called an image."""
    whole = (folder / "cats/3.png").read_bytes()
    (folder / "cats/3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cats/5.png").write_text("not an image")
    return folder
