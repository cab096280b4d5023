"""`hf-vq`: what it lists, what it starts, and how it ends when it cannot."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import hf_vq
import hf_vq.commands
import hf_vq_cli

ROOT = Path(__file__).parents[1]
NO_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # to import them is an error
import hf_vq_cli
hf_vq_cli.main(["--help"])
hf_vq_cli.main(["recipes"])
"""


def test_lists_need_no_torch() -> None:
    """`hf-vq --help` and `hf-vq recipes` import none of the packages that take seconds."""
    result = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert "train-tokenizer   Train an image tokenizer\n" in result.stdout
    assert "noto_emoji_32 " in result.stdout


def test_python_m_is_the_command() -> None:
    """`python -m hf_vq` is `hf-vq`."""
    tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert entries == {"hf-vq": "hf_vq_cli:main"}
    assert import_module("hf_vq.__main__").main is hf_vq_cli.main


def test_the_overview_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command that is listed exists and says in a short sentence what it does."""
    hf_vq_cli.main([])
    listed = capsys.readouterr().out
    for name, (module, _) in hf_vq_cli.COMMANDS.items():
        command = import_module(f"hf_vq.commands.{module}")
        assert callable(command.main)
        line = next(line for line in listed.splitlines() if line.startswith(f"  {name} "))
        summary = str(command.__doc__).split("\n")[0]
        assert summary.partition(". ")[0].removesuffix(".") == line.removeprefix(f"  {name}").strip()
        assert len(line) <= 119, line


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each, which is its first comment; a name gives the text of the file."""
    hf_vq_cli.main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    files = sorted((Path(hf_vq.__file__).parent / "recipes").glob("*.yaml"))
    assert [line.split()[0] for line in lines] == [path.stem for path in files]
    assert all(line.endswith(".") and len(line) <= 119 for line in lines)

    hf_vq_cli.main(["recipes", "noto_emoji_32"])
    assert capsys.readouterr().out == (files[0].parent / "noto_emoji_32.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "no command 'train'. Did you mean train-tokenizer, train-generator, train-classifier?"),
        (["tokenise"], "no command 'tokenise'. Did you mean tokenize?"),
        (["receipes"], "no command 'receipes'. Did you mean recipes?"),
        (["xyz"], "no command 'xyz'. There are train-tokenizer, .*, recipes."),
        (["recipes", "noto_emoji"], "no recipe 'noto_emoji'. Did you mean noto_emoji_32, "),
        (["train-tokenizer", "--num_kodes", "5"], "Did you mean 'model.num_codes'?"),
        (["train-tokenizer", "--num-proceses", "5"], "Did you mean 'num_processes'?"),
        (
            ["train_tokenizer", "--config", "images"],
            "There is no recipe 'images'. Give the path of a YAML file, or one",
        ),
    ],
)
def test_slips_offer_what_is_near(words: list[str], message: str) -> None:
    """Unknown commands, recipes and fields end with a line that names the nearest."""
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        hf_vq_cli.main(words)


def test_a_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the extra a command ends with one line. A fault of our own is no missing package."""
    (tmp_path / "more.py").write_text("import not_installed.part")
    (tmp_path / "wrong.py").write_text("import hf_vq.not_there")
    monkeypatch.setattr(hf_vq.commands, "__path__", [*hf_vq.commands.__path__, str(tmp_path)])
    monkeypatch.setattr(hf_vq_cli, "COMMANDS", {"more": ("more", "train"), "wrong": ("wrong", "train")})

    with pytest.raises(SystemExit, match=r"hf-vq more needs .* 'not_installed'.* pip install 'hf_vq\[train\]'"):
        hf_vq_cli.main(["more"])
    with pytest.raises(ModuleNotFoundError, match="hf_vq.not_there"):
        hf_vq_cli.main(["wrong"])


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """It is that of the package."""
    hf_vq_cli.main(["--version"])
    assert capsys.readouterr().out == f"hf_vq {hf_vq.__version__}\n"


def test_the_words_after_a_command_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command gets them as they are."""
    seen: list[list[str]] = []
    module = ModuleType("hf_vq.commands.told")
    module.main = seen.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(hf_vq_cli.COMMANDS, "told", ("told", "train"))
    monkeypatch.setattr(sys, "argv", ["hf-vq", "told", "--a", "1", "-b"])
    hf_vq_cli.main()
    assert seen == [["--a", "1", "-b"]]
