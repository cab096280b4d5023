"""Pulling: one pinned commit, every file verified, and errors that say what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from transformers import AutoModel, BertConfig

import hf_vq
from hf_vq import VQImageProcessor, VQModel
from hf_vq.data.tokens import read_manifest
from hf_vq.hub import models as hub_module
from hf_vq.hub.loading import load_model
from hf_vq.hub.repository import HubError

if TYPE_CHECKING:
    from ..hub_server import HubServer

from .hub_models import NAME, assert_same, edit_config, tiny


def test_a_revision_is_loaded_as_it_was(pushed: VQModel, hub: HubServer) -> None:
    """A tag, a branch and a commit give the weights of that time; the model says which commit it is from."""
    HfApi().create_tag(NAME, tag="v1.0")
    commit = hf_vq.push_to_hub(tiny(1), NAME)
    old, processor = hf_vq.from_hub(NAME, revision="v1.0")
    new, _ = hf_vq.from_hub(NAME)

    assert_same(old, pushed)
    assert_same(new, tiny(1))
    assert_same(hf_vq.from_hub(NAME, revision=commit.oid)[0], new)
    assert new.config._commit_hash == commit.oid and new.name_or_path == NAME and not new.training
    assert isinstance(processor, VQImageProcessor) and processor.resample == 0


def test_what_is_here_wins_and_the_hub_is_asked_by_name(
    pushed: VQModel, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is hardly a repository's is a folder mistyped: the Hub is asked where that is said."""
    (tmp_path / "alice").mkdir()
    monkeypatch.chdir(tmp_path)
    hub.requests.clear()
    for name in (NAME, "vq", "run/final"):
        hint = f"no model in '{name}': there is no such folder here; ask the Hub for it with hf://{name}$"
        with pytest.raises(FileNotFoundError, match=hint):
            load_model(name)
        with pytest.raises(
            FileNotFoundError, match=hint.replace("model", "token data set").replace("//", "//datasets/")
        ):
            read_manifest(name)
    assert hub.requests == []

    assert_same(load_model(f"hf://{NAME}")[0], pushed)
    tiny(1).save_pretrained(tmp_path / NAME)
    assert_same(load_model(NAME)[0], tiny(1))
    assert_same(load_model(f"hf://{NAME}")[0], pushed)
    with pytest.raises(HubError, match="There is no model repository 'run/vq'"):
        load_model("run/vq")


def test_all_files_are_of_one_commit(pushed: VQModel, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push between two of the downloads has no influence."""
    fetch = hub_module.fetch_file

    def overtaken(repo_id: str, name: str, *args: Any) -> Path:
        path = fetch(repo_id, name, *args)
        if name == "config.json":
            hf_vq.push_to_hub(tiny(1), NAME, image_processor=VQImageProcessor(image_size=16, resample=3))
        return path

    monkeypatch.setattr(hub_module, "fetch_file", overtaken)
    model, processor = hf_vq.from_hub(NAME)

    assert_same(model, pushed)
    assert processor.resample == 0


def test_what_was_loaded_once_loads_offline(pushed: VQModel, hub: HubServer, offline: Callable[[], None]) -> None:
    """By branch and by commit, without a request; what was not loaded is reported."""
    first, _ = hf_vq.from_hub(NAME)
    hf_vq.push_to_hub(tiny(1), NAME, revision="v2")
    offline()
    hub.requests.clear()

    for revision in (None, "main", first.config._commit_hash):
        model, processor = hf_vq.from_hub(NAME, revision=revision)
        assert_same(model, pushed)
        assert processor.resample == 0
    assert hub.requests == []
    with pytest.raises(HubError, match=r"(?s)'alice/vq' \(v2\) is not in the cache and the Hub cannot be reached"):
        hf_vq.from_hub(NAME, revision="v2")


def test_a_repository_without_an_image_processor_gets_the_default(
    hub: HubServer, tmp_path: Path, offline: Callable[[], None]
) -> None:
    """Online, and offline where it is known that there is none; where it is not known the missing file is an error."""
    tiny().save_pretrained(tmp_path)
    HfApi().create_repo(NAME)
    HfApi().upload_folder(repo_id=NAME, folder_path=tmp_path)
    AutoModel.from_pretrained(NAME)  # leaves the processor's file an open question
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="'preprocessor_config.json' of 'alice/vq'"):
            hf_vq.from_hub(NAME)

    assert hf_vq.from_hub(NAME)[1].crop_size["height"] == 16
    offline()
    assert hf_vq.from_hub(NAME)[1].crop_size["height"] == 16


def test_missing_and_closed_repositories_are_told_apart(pushed: VQModel, hub: HubServer) -> None:
    """No such repository or a private one, a gated one, no such revision, no name of a repository."""
    with pytest.raises(HubError, match="no model repository 'alice/nothing', or it is private"):
        hf_vq.from_hub("alice/nothing")
    with pytest.raises(HubError, match="has no revision 'v9'. Its branches: main; its tags: none"):
        hf_vq.from_hub(NAME, revision="v9")
    with pytest.raises(ValueError, match="Repo id must be"):
        hf_vq.from_hub("out/run/final")
    repository = hub.store.repositories["models", NAME]
    repository.private = True
    for token in ("hf_bob", False):
        with pytest.raises(HubError, match="or it is private and the token that was used may not read it"):
            hf_vq.from_hub(NAME, token=token)
    repository.private, repository.gated_for = False, set()
    for token in ("hf_bob", False):
        with pytest.raises(HubError, match=f"'alice/vq' is gated.*{hub.url}/alice/vq"):
            hf_vq.from_hub(NAME, token=token)

    repository.gated_for = {"bob"}
    assert_same(hf_vq.from_hub(NAME, token="hf_bob")[0], pushed)


def test_other_models_are_named(hub: HubServer, tmp_path: Path) -> None:
    """A transformers model, a diffusers model, a repository without a model; no weights are fetched."""
    hub.store.create("models", NAME, private=False)
    with pytest.raises(HubError, match="'alice/vq' is not a VQ model: it has no config.json"):
        hf_vq.from_hub(NAME)
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    hub.store.write(NAME, "config.json", (tmp_path / "config.json").read_bytes())
    with pytest.raises(HubError, match=r"of the type 'bert' \(BertModel\), not 'hf_vq'"):
        hf_vq.from_hub(NAME)
    hub.store.write(NAME, "config.json", b'{"_class_name": "AutoencoderKL"}')
    with pytest.raises(HubError, match="'AutoencoderKL'"):
        hf_vq.from_hub(NAME)
    assert not [path for _, path in hub.requests if "safetensors" in path]


def test_a_newer_version_is_noticed(pushed: VQModel, hub: HubServer) -> None:
    """By `from_hub` and by AutoModel; a later patch release and checkpoints without the record are read."""
    edit_config(hub, hf_vq_version="99.0.0")
    for loader in (hf_vq.from_hub, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match="made with hf_vq 99.0.0, newer than .*pip install --upgrade hf_vq"):
            loader(NAME)
    assert not [path for _, path in hub.requests if path.endswith("/model.safetensors")]  # none that would be useless
    for version in (hf_vq.__version__.rpartition(".")[0] + ".999", None):
        edit_config(hub, hf_vq_version=version)
        assert_same(hf_vq.from_hub(NAME)[0], pushed)
    edit_config(hub, hf_vq_version="new")
    with pytest.raises(ValueError, match="must be a version"):
        hf_vq.from_hub(NAME)


def test_the_version_is_recorded_anew_at_each_save(pushed: VQModel, hub: HubServer, tmp_path: Path) -> None:
    """What an older version made and this one saves is this one's."""
    edit_config(hub, hf_vq_version="0.0.1")
    hf_vq.from_hub(NAME)[0].save_pretrained(tmp_path)

    assert json.loads((tmp_path / "config.json").read_text())["hf_vq_version"] == hf_vq.__version__


def test_a_lost_connection_is_reported_and_the_next_call_goes_on(pushed: VQModel, hub: HubServer) -> None:
    """The download that broke off leaves nothing that would be taken for the file."""
    hub.fail("GET", "model.safetensors", "cut")
    with pytest.raises(HubError, match="'model.safetensors' of 'alice/vq' could not be fetched"):
        hf_vq.from_hub(NAME)

    hub.mend()
    assert_same(hf_vq.from_hub(NAME)[0], pushed)
