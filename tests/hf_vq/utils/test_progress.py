"""Progress: bars are for terminals, and a log has a line now and then."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from hf_vq.data.tokenize import tokenize_dataset
from hf_vq.utils import progress
from hf_vq.utils.progress import track

from ...tiny_tokens import arguments, picture, save, tiny


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It counts to the end; who wants silence has it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(track(range(3), 3, unit="images", desc="read", silent=False)) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
    assert list(track(range(3), 3, unit="images", desc="read", silent=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_log_has_lines_as_time_goes_by(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One a minute; without a total there is the count alone."""
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        assert sum(track(range(4), 1000, unit="images", desc="read", silent=False)) == 6
        list(track(range(2), None, unit="images", desc="seen", silent=False))
        list(track(range(4), 4, unit="images", desc="silent", silent=True))
    assert caplog.messages == ["read: 2 of 1,000 images", "read: 4 of 1,000 images", "seen: 2 images"]


def test_the_log_of_a_tokenization_has_no_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """What ends within a minute has its first and its last line."""
    (tmp_path / "images").mkdir()
    for number in range(5):
        picture(number).save(tmp_path / "images" / f"{number}.png")
    tokenizer = save(tiny(), tmp_path / "vq")
    capsys.readouterr()
    with caplog.at_level(logging.INFO, "hf_vq"):
        tokenize_dataset(arguments(tokenizer, tmp_path / "images", tmp_path / "tokens", disable_tqdm=False))
    assert "images/s" not in capsys.readouterr().err
    assert [line.partition(" ")[0] for line in caplog.messages] == ["train:", "train:"]
