"""What the README shows, runs and prints what it says."""

import fnmatch
import re
import shutil
from pathlib import Path

import pytest
import torch

from hf_vq.commands import generate

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readme_has_its_examples():
    """A layer in a loop, loading a model, a pipeline, a generator, the Hub, the layer's interface."""
    assert len(BLOCKS) == 6


@pytest.fixture(scope="module")
def flag(tmp_path_factory):
    """The picture that the first command after the installation makes, which the blocks then read."""
    words = re.search(r"^hf-vq generate (.* --output) flag.png$", README, re.MULTILINE)
    assert words is not None
    path = tmp_path_factory.mktemp("first") / "flag.png"
    generate.main([*words[1].split(), str(path)])
    return path


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_code_prints_what_its_comments_say(block, flag, tmp_path, monkeypatch, capsys, hub):
    """Each `print(...)  # text` prints that text, with the Hub on this machine in the place of the real one."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(flag, "flag.png")
    torch.manual_seed(0)

    exec(compile(block, "README.md", "exec"), {})

    expected = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    printed = capsys.readouterr().out.replace(hub.url, "https://huggingface.co").splitlines()
    assert len(expected) >= 2
    for line, pattern in zip(printed, expected, strict=True):
        assert fnmatch.fnmatchcase(line, pattern.replace("[", "[[]"))


def test_the_annotated_tree_is_true_to_the_code():
    """docs/architecture.md names every module, in its folder, and no other."""
    root = Path(__file__).parents[1]
    page = (root / "docs" / "architecture.md").read_text()
    tree = re.search(r"```\n(modeling/\n.*?)```", page, re.DOTALL)
    assert tree is not None
    folders: list[str] = []
    named = set()
    for line in tree[1].splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name.rstrip("/")]
        if name.endswith(".py"):
            named.add("/".join(folders))
    files = [
        root / "hf_vq_cli.py",
        *(root / "modeling").glob("*.py"),
        *(root / "scripts").glob("*.py"),
        *(root / "hf_vq").rglob("*.py"),
    ]
    modules = {path.relative_to(root).as_posix() for path in files if path.name != "__init__.py"}

    assert named == {name for name in modules if not name.startswith("hf_vq/modeling")}


def test_the_page_of_results_has_the_tables_as_they_were_measured():
    """Every table that was measured is on the page, and none is out of date."""
    root = Path(__file__).parents[1]
    page = (root / "docs" / "results.md").read_text()
    tables = {path.stem: path.read_text().strip() for path in (root / "benchmarks" / "results").glob("*.md")}

    assert dict(re.findall(r"<!-- table: (\w+) -->\n(.*?)\n<!-- end -->", page, re.DOTALL)) == tables
