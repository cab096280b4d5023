"""Pushing that fails: nothing half published, lost answers found, branches kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from PIL import Image

import hf_vq
from hf_vq.hub.lost_answers import find_commit
from hf_vq.hub.new_branches import NewBranch
from hf_vq.hub.repository import HubError, publish_folder

if TYPE_CHECKING:
    from ..hub_server import HubServer
from .test_hub_push import NAME, PERSONS_CARD, card, tiny, titles


@pytest.mark.parametrize(
    ("revision", "methods", "path", "kind", "nth"),
    [
        (None, "PUT", "/_lfs/", "error", 2),
        (None, "PUT", "/_lfs/", "cut", 1),
        (None, "POST", "/commit/", "cut", 1),
        ("v2", "PUT", "/_lfs/", "error", 1),
        ("v2", "POST", "/preupload/", "error", 1),
        ("v2", "POST", "/commit/", "error", 1),
    ],
)
def test_a_failing_push_leaves_nothing_and_can_be_repeated(
    hub: HubServer, revision: str | None, methods: str, path: str, kind: Literal["error", "cut"], nth: int
) -> None:
    """Status 500 or a lost connection at any request: no commit, no new branch; the same call then succeeds."""
    images = [Image.new("RGB", (16, 16), "red")]  # a second large file
    hf_vq.push_to_hub(tiny(0), NAME)
    repository = hub.store.repositories["models", NAME]
    before = dict(repository.refs)
    hub.fail(methods, path, kind, nth)
    with pytest.raises(HubError, match=r"(?s)was not published to 'alice/vq'.*can be made again"):
        hf_vq.push_to_hub(tiny(1), NAME, revision=revision, images=images)
    assert repository.refs == before

    hub.mend()
    hf_vq.push_to_hub(tiny(1), NAME, revision=revision, images=images)
    loaded, _ = hf_vq.from_hub(NAME, revision=revision)
    assert torch.equal(loaded.quantize.get_codebook(), tiny(1).quantize.get_codebook())


@pytest.mark.parametrize("path", [r"/resolve/\w+/README\.md", "/refs", "/tree/"])
def test_a_card_that_cannot_be_read_is_not_overwritten(hub: HubServer, path: str) -> None:
    """A Hub that fails while the repository is looked at stops the push; the person's card is still there."""
    HfApi().create_repo(NAME)
    hub.store.write(NAME, "README.md", PERSONS_CARD.encode())
    hub.fail("GET HEAD", path)
    with pytest.raises(HubError, match="was not published to 'alice/vq'"):
        hf_vq.push_to_hub(tiny(), NAME)

    assert card(hub) == PERSONS_CARD


def test_a_short_failure_is_overcome(hub: HubServer) -> None:
    """One status 500 and one lost connection are retried by the client: the push succeeds."""
    hub.fail("PUT", "/_lfs/", times=1)
    hub.fail("POST", "/preupload/", "cut", times=1)
    hf_vq.push_to_hub(tiny(), NAME)

    assert titles(hub) == ["Upload VQModel", "initial commit"]


@pytest.mark.parametrize("arguments", [{}, {"revision": "v2"}, {"create_pr": True}], ids=["main", "branch", "pr"])
def test_a_push_whose_answer_is_lost_is_found(hub: HubServer, arguments: dict[str, Any]) -> None:
    """The commit is there, so it is returned, and there is one of it."""
    hf_vq.push_to_hub(tiny(0), NAME)
    hub.fail("POST", "/commit/", "lost", times=1)

    commit = hf_vq.push_to_hub(tiny(1), NAME, **arguments)

    refs = hub.store.repositories["models", NAME].refs
    place = "refs/pr/1" if "create_pr" in arguments else arguments.get("revision", "main")
    assert refs[place] == commit.oid and commit.commit_message == "Upload VQModel"
    assert titles(hub, place) == ["Upload VQModel", "Upload VQModel", "initial commit"]
    assert set(refs) == {"main", place}
    if "create_pr" in arguments:
        assert commit.pr_url == f"{hub.url}/{NAME}/discussions/1" and commit.pr_num == 1
    loaded, _ = hf_vq.from_hub(NAME, revision=commit.oid)
    assert torch.equal(loaded.quantize.get_codebook(), tiny(1).quantize.get_codebook())


def test_a_push_that_nobody_can_look_for_is_not_called_unpublished(hub: HubServer) -> None:
    """Then the message says that nobody knows."""
    hf_vq.push_to_hub(tiny(0), NAME)
    hub.fail("POST", "/commit/", "lost")
    hub.fail("GET", "/commits/")

    with pytest.raises(HubError, match="Nobody knows whether .*Look there before you make the same call again"):
        hf_vq.push_to_hub(tiny(1), NAME)


def test_another_commit_is_not_taken_for_the_lost_one(hub: HubServer) -> None:
    """One with the same message on the same parent, but with other files, is somebody else's."""
    hf_vq.push_to_hub(tiny(0), NAME)
    HfApi().upload_file(
        path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=NAME, revision="main", commit_message="x"
    )
    head = hub.store.repositories["models", NAME].refs["main"]
    api = HfApi()
    found = find_commit(
        api, NAME, [CommitOperationAdd("notes.txt", b"other")], repo_type="model", branch="main",
        parent=api.list_repo_commits(NAME)[1].commit_id, message="x", description=None, create_pr=False,
    )  # fmt: skip
    same = find_commit(
        api, NAME, [CommitOperationAdd("notes.txt", b"mine")], repo_type="model", branch="main",
        parent=api.list_repo_commits(NAME)[1].commit_id, message="x", description=None, create_pr=False,
    )  # fmt: skip

    assert found is None and same is not None and same.oid == head


KILLED = """
import os, signal, sys
from huggingface_hub import HfApi
from hf_vq.hub.repository import publish_folder
HfApi.create_commit = lambda *arguments, **keywords: os.kill(os.getpid(), signal.SIGKILL)
publish_folder(sys.argv[1], "alice/vq", revision="v2")
"""


def test_a_killed_push_leaves_no_branch_behind_for_good(hub: HubServer, tmp_path: Path) -> None:
    """A push that died before its commit leaves an empty branch: the next one begins it anew, or takes it away."""
    hf_vq.push_to_hub(tiny(0), NAME)
    refs = hub.store.repositories["models", NAME].refs
    (tmp_path / "notes.txt").write_text("mine")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, check=False)
    assert killed.returncode == -9 and refs["v2"] == refs["main"]
    hub.store.write(NAME, "other.txt", b"on main meanwhile")

    hub.fail("POST", "/commit/")
    with pytest.raises(HubError, match="Nothing half done is visible"):
        publish_folder(tmp_path, NAME, revision="v2")
    assert set(refs) == {"main"}  # it was known as left over, so its failure took it away
    hub.mend()

    HfApi().create_branch(NAME, branch="v2", revision="main")  # as a push that is killed now
    new = NewBranch(HfApi(), NAME, "model", "v2")
    new.begin(refs["v2"])
    hub.store.write(NAME, "other.txt", b"on main again")
    publish_folder(tmp_path, NAME, revision="v2")
    assert hub.store.read(NAME, "other.txt", "v2") == b"on main again" and not new.note.exists()
    assert hub.store.repositories["models", NAME].commits[refs["v2"]].parent == refs["main"]


def test_a_branch_that_a_person_made_is_kept(hub: HubServer, tmp_path: Path) -> None:
    """It looks the same, but no push from here made it: a failing push leaves it, a good one builds on it."""
    hf_vq.push_to_hub(tiny(0), NAME)
    refs = hub.store.repositories["models", NAME].refs
    HfApi().create_branch(NAME, branch="v2")
    begun = refs["v2"]
    hub.store.write(NAME, "other.txt", b"on main meanwhile")
    (tmp_path / "notes.txt").write_text("mine")
    hub.fail("POST", "/commit/")
    with pytest.raises(HubError):
        publish_folder(tmp_path, NAME, revision="v2")
    assert refs["v2"] == begun
    hub.mend()

    publish_folder(tmp_path, NAME, revision="v2")
    assert "other.txt" not in hub.store.files(NAME, "v2") and "notes.txt" in hub.store.files(NAME, "v2")
