"""Each script calls the command of its name, and does nothing else."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_the_door_of_a_command(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the command's main function, and started by its path it runs it on the command line."""
    command = importlib.import_module(f"hf_vq.commands.{path.stem}")
    assert runpy.run_path(str(path))["main"] is command.main
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")

    assert end.value.code in (0, None)
    assert command.__doc__ is not None and command.__doc__.splitlines()[0] in capsys.readouterr().out


def test_every_script_is_there() -> None:
    """None is lost."""
    assert {path.stem for path in SCRIPTS} == {
        "train_tokenizer", "train_generator", "train_classifier", "tokenize_dataset", "generate", "evaluate",
        "convert_checkpoint", "demo",
    }  # fmt: skip
