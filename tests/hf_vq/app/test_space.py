"""The app as a Space: what is written, that it starts, and what a second push changes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import HfApi, RepoCard, hf_hub_download
from packaging.requirements import Requirement

from hf_vq import push_to_hub, sample_model
from hf_vq.app.space import write_space
from hf_vq.hub.repository import publish_folder

from ...tiny_tokens import save, tiny

if TYPE_CHECKING:
    from ...hub_server import HubServer

SPACE = "alice/tokens"
# The Space's own package, with everything that the page imports, and the words of its app.py.
START = """
import ast, sys
from pathlib import Path
import hf_vq
assert Path(hf_vq.__file__).parents[1] == Path.cwd(), hf_vq.__file__
from hf_vq.commands.app import AppArguments, load_views
from hf_vq.commands.parsing import parse_command_line
call = ast.parse(Path("app.py").read_text()).body[-1].value
words = ast.literal_eval(call.args[0])
options, _ = parse_command_line(AppArguments, None, words)
tokenizer, generator = load_views(options)
print(options.host, options.port, generator is not None, len(tokenizer.rows))
"""


def write(folder: Path, model: str, **fields: Any) -> Path:
    """Writes a Space of a model and the shipped images."""
    settings: dict[str, Any] = {"revision": None, "dataset": "noto-emoji-32", "split": "test", "has_generator": False}
    write_space(folder, model, **{**settings, "gradio_version": "6.31.0", **fields})
    return folder


def start(folder: Path) -> str:
    """Loads in a new process what the Space would show, and says what that is."""
    environment = {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "home")}
    result = subprocess.run([sys.executable, "-c", START], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip().splitlines()[-1]


def test_a_space_of_the_sample_has_all_it_needs(tmp_path: Path) -> None:
    """Package, model and images, pinned requirements, and a card that starts it; the other sample stays here."""
    folder = write(tmp_path / "space", "emoji-generator", has_generator=True)
    pins = [Requirement(line) for line in (folder / "requirements.txt").read_text().splitlines()]
    card = RepoCard.load(folder / "README.md")

    assert not list(folder.rglob("__pycache__"))
    assert start(folder) == "0.0.0.0 7860 True 206"
    assert [path.name for path in (folder / "hf_vq" / "samples").iterdir()] == ["emoji-generator"]
    assert (folder / "hf_vq" / "modeling" / "modeling_vq.py").is_file()
    assert {"torch", "transformers"} <= {pin.name for pin in pins}
    assert all([next(iter(pin.specifier)).operator == "==" and "+" not in str(pin) for pin in pins])
    assert card.data.sdk == "gradio" and card.data.sdk_version == "6.31.0" and card.data.app_file == "app.py"
    ast.parse((folder / "app.py").read_text())


def test_a_model_of_a_folder_goes_along_and_images_stay(tmp_path: Path) -> None:
    """Nothing of it says where it was, and images of this machine are not published."""
    save(tiny(), tmp_path / "mine")
    folder = write(tmp_path / "space", str(tmp_path / "mine"), dataset=str(tmp_path))
    texts = "".join(path.read_text() for name in ("*.py", "*.md", "*.txt") for path in folder.glob(name))

    assert start(folder) == "0.0.0.0 7860 False 0"
    assert str(tmp_path) not in texts and not list(folder.rglob("*.parquet")) and not list(folder.rglob("samples/*"))


def test_a_model_of_the_hub_is_named_with_its_commit(tmp_path: Path) -> None:
    """It does not go along; the card links to it."""
    folder = write(tmp_path / "space", "alice/vq", revision="abc1234", dataset="alice/images")
    words = (folder / "app.py").read_text()

    assert "'--model', 'alice/vq', '--revision', 'abc1234'" in words and "'--dataset', 'alice/images'" in words
    assert RepoCard.load(folder / "README.md").data.models == ["alice/vq"]
    assert not list(folder.rglob("*.safetensors"))


def test_a_second_push_renews_the_space(tmp_path: Path, hub: HubServer) -> None:
    """One commit each; old modules go, the version of gradio is renewed, and what a person wrote stays."""
    save(tiny(), tmp_path / "mine")
    folder = write(tmp_path / "first", str(tmp_path / "mine"), dataset=None)
    (folder / "hf_vq" / "old.py").write_text("")
    publish_folder(folder, SPACE, repo_type="space", commit_message="first")
    api = HfApi()
    text = RepoCard.load(folder / "README.md").content.replace("# mine", "# My page\n\nHello.")
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=SPACE, repo_type="space")
    second = write(tmp_path / "second", str(tmp_path / "mine"), dataset=None, gradio_version="6.32.0")
    publish_folder(second, SPACE, repo_type="space", commit_message="second")
    files = api.list_repo_files(SPACE, repo_type="space")
    card = RepoCard.load(hf_hub_download(SPACE, "README.md", repo_type="space"))

    titles = [commit.title for commit in hub.store.repositories["spaces", SPACE].history()]
    assert titles[0] == "second" and titles[2] == "first"
    assert "hf_vq/old.py" not in files and "hf_vq/app/interface.py" in files and "app.py" in files
    assert card.data.sdk_version == "6.32.0" and "# My page\n\nHello." in card.text


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_the_command_pushes_a_model_of_the_hub_by_its_commit(
    kind: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints the commit of the Space, whose app names that of the model. gradio's version is all it needs of it."""
    from hf_vq.commands import app

    monkeypatch.setattr(app, "require", lambda *names: None)
    monkeypatch.setattr(app.metadata, "version", lambda name: "6.31.0")
    published = push_to_hub(sample_model(f"emoji-{kind}"), "alice/model")
    app.main(["--model", "alice/model", "--dataset", "none", "--push", SPACE])
    words = Path(hf_hub_download(SPACE, "app.py", repo_type="space")).read_text()

    assert f"'--model', 'alice/model', '--revision', '{published.oid}'" in words
    head = hub.store.repositories["spaces", SPACE].history()[0]
    assert head.title == "Upload the page of hf_vq's app" and head.sha in capsys.readouterr().out
    card = RepoCard.load(hf_hub_download(SPACE, "README.md", repo_type="space"))
    assert card.data.models == ["alice/model"] and card.data.sdk_version == "6.31.0"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """By the command, before anything is published or gradio is asked for."""
    from hf_vq.commands.app import AppArguments, load_views

    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_views(AppArguments(str(tmp_path / "none")))
