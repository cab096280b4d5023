"""Token data sets: who may read them, and how they go to the Hub and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download

import hf_vq
from hf_vq import load_token_dataset
from hf_vq.data.tokenize import tokenize_dataset
from hf_vq.data.tokens import push_token_dataset
from hf_vq.hub.repository import HubError
from hf_vq.utils.hashes import weights_sha256

from ...tiny_tokens import PROCESSOR, arguments, picture, save, tiny

if TYPE_CHECKING:
    from ...hub_server import HubServer

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- whose tokens they are


def test_the_tokenizer_in_hand_is_compared_with_the_manifest(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """A model, a folder or a hash that made the tokens is accepted; another is refused with what differs."""
    tokenize_dataset(arguments(tokenizer, images, tmp_path / "tokens"))
    other = tiny(num_codes=64)

    for same in (tiny(), tokenizer, Path(tokenizer), weights_sha256(tiny())):
        assert len(load_token_dataset(tmp_path / "tokens", tokenizer=same)) == 11
    for different in (other, weights_sha256(other), save(other, tmp_path / "other")):
        with pytest.raises(ValueError, match="made by another tokenizer") as error:
            load_token_dataset(tmp_path / "tokens", tokenizer=different)
        assert weights_sha256(other) in str(error.value) and weights_sha256(tiny()) in str(error.value)
    assert "num_codes: 300 there, 64 here" in str(error.value)


def test_the_hash_is_of_all_weights() -> None:
    """It is the same for the same weights, and another for one changed weight or for another dtype."""
    model = tiny()
    first = weights_sha256(model)

    assert first == weights_sha256(tiny())
    assert first != weights_sha256(tiny().double())
    with torch.no_grad():
        next(model.decoder.parameters())[0] += 1e-6
    assert first != weights_sha256(model)


def test_folders_without_tokens_say_so(tmp_path: Path) -> None:
    """A folder without a manifest, a missing folder, a foreign manifest and one of a later format are errors."""
    with pytest.raises(FileNotFoundError, match="not a token data set: it has no manifest.json"):
        load_token_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        load_token_dataset(tmp_path / "missing")
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="not the manifest of a token data set"):
        load_token_dataset(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99.*pip install --upgrade"):
        load_token_dataset(tmp_path)


# ---- the Hub


def test_from_the_hub_and_back(hub: HubServer, tmp_path: Path) -> None:
    """Images and tokenizer from the Hub, pinned to commits; the tokens back to it, for every kind of reader."""
    hf_vq.push_to_hub(tiny(), "alice/tok", image_processor=PROCESSOR)
    rows = datasets.Dataset.from_dict({"image": [picture(n) for n in range(6)], "label": [n % 2 for n in range(6)]})
    rows.push_to_hub("alice/pictures")
    manifest = tokenize_dataset(
        arguments("alice/tok", "alice/pictures", tmp_path / "tokens", push_to_hub=True, hub_dataset_id="alice/codes")
    )

    made_by, source = manifest["tokenizer"], manifest["dataset"]
    assert (made_by["name"], made_by["revision"]) == ("alice/tok", HfApi().model_info("alice/tok").sha)
    assert (source["name"], source["revision"]) == ("alice/pictures", HfApi().dataset_info("alice/pictures").sha)

    local: Any = load_token_dataset(tmp_path / "tokens", tokenizer="alice/tok")
    remote: Any = load_token_dataset("alice/codes", tokenizer="alice/tok")
    streamed = list(load_token_dataset("alice/codes", streaming=True))
    plain: Any = datasets.load_dataset("alice/codes", split="train")
    assert len(local) == 6
    for expected, *others in zip(local, remote, streamed, strict=True):
        for row in others:
            assert torch.equal(row["image_tokens"], expected["image_tokens"])
            assert [row[name] for name in ("label", "key", "view")] == [
                expected[name] for name in ("label", "key", "view")
            ]
    assert plain.with_format(None)["key"] == local["key"]


def card_code(repo_id: str) -> str:
    """The code of a published card."""
    card = Path(hf_hub_download(repo_id, "README.md", repo_type="dataset")).read_text()
    return card.partition("```python\n")[2].partition("```")[0]


def test_the_code_of_the_card_runs(hub: HubServer, images: Path, tmp_path: Path) -> None:
    """Also where the repository has the folder's name and nobody said whose it is."""
    hf_vq.push_to_hub(tiny(), "alice/tok", image_processor=PROCESSOR)
    tokenize_dataset(arguments("alice/tok", images, tmp_path / "tokens", push_to_hub=True))

    found: dict[str, Any] = {}
    *lines, last = card_code("alice/tokens").splitlines()
    exec("\n".join([*lines, f"image = {last}"]), found)
    assert len(found["tokens"]) == 11 and found["image"].size == (16, 16)


def test_the_card_does_not_offer_a_local_folder_as_a_hub_id(
    hub: HubServer, images: Path, tokenizer: str, tmp_path: Path
) -> None:
    """Its code says what has to be filled in."""
    tokenize_dataset(arguments(tokenizer, images, tmp_path / "tokens", push_to_hub=True))

    code = card_code("alice/tokens")
    assert f'"{Path(tokenizer).name}"' not in code
    assert 'from_hub("user/name")  # the tokenizer was a local folder' in code


def test_a_branch_with_a_pull_request_creates_nothing(
    hub: HubServer, images: Path, tokenizer: str, tmp_path: Path
) -> None:
    """What is wrong with the arguments is found before a repository is made."""
    tokenize_dataset(arguments(tokenizer, images, tmp_path / "tokens"))

    with pytest.raises(ValueError, match="create_pr"):
        push_token_dataset(tmp_path / "tokens", "alice/codes", revision="other", create_pr=True)
    assert not any("create" in path for _, path in hub.requests)


def test_a_push_replaces_the_shards_of_an_earlier_one(
    hub: HubServer, images: Path, tokenizer: str, tmp_path: Path
) -> None:
    """A reader of all parquet files gets the new ones only; what people wrote into the card stays."""
    tokenize_dataset(arguments(tokenizer, images, tmp_path / "many", images_per_shard=2))
    tokenize_dataset(arguments(tokenizer, images, tmp_path / "few"))
    (tmp_path / "few" / "notes.txt").write_text("mine")
    push_token_dataset(tmp_path / "many", "alice/codes")
    push_token_dataset(tmp_path / "few", "alice/codes", revision="other")
    commit = push_token_dataset(tmp_path / "few", "alice/codes")

    assert commit.oid
    names = sorted(HfApi().list_repo_files("alice/codes", repo_type="dataset"))
    assert [name for name in names if not name.startswith(".")] == [
        "README.md",
        "manifest.json",
        *(f"train-0000{number}.parquet" for number in range(3)),
    ]
    assert len(datasets.load_dataset("alice/codes", split="train")) == 11
    with pytest.raises(HubError, match="no dataset repository 'alice/none'"):
        load_token_dataset("alice/none")


def test_an_unfinished_data_set_is_not_published(hub: HubServer, images: Path, tokenizer: str, tmp_path: Path) -> None:
    """Nothing is created on the Hub while a split or a file is missing."""
    tokenize_dataset(arguments(tokenizer, images, tmp_path / "tokens"))
    (tmp_path / "tokens" / "train-00001.parquet").unlink()

    with pytest.raises(FileNotFoundError, match="not published: 1 files are missing, such as train-00001.parquet"):
        push_token_dataset(tmp_path / "tokens", "alice/codes")
    assert not any("create" in path for _, path in hub.requests)
