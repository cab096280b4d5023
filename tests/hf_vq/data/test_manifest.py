"""Tokens are read only as they were written: shards by their hashes, and a manifest that makes sense as a whole."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from hf_vq.data.manifest import DamagedShardError
from hf_vq.data.tokenize import TokenizationArguments, tokenize_dataset
from hf_vq.data.tokens import load_token_dataset, push_token_dataset, read_manifest

from ...tiny_tokens import arguments, contents

if TYPE_CHECKING:
    from ...hub_server import HubServer

pytestmark = pytest.mark.usefixtures("one_thread")
SHARD = "train-00001.parquet"


@pytest.fixture
def args(images: Path, tokenizer: str, tmp_path: Path) -> TokenizationArguments:
    """How the data set was made."""
    return arguments(tokenizer, images, tmp_path / "tokens")


@pytest.fixture
def tokens(args: TokenizationArguments, tmp_path: Path) -> Path:
    """A finished data set of three shards."""
    tokenize_dataset(args)
    return tmp_path / "tokens"


def flip_a_bit(path: Path, place: int) -> None:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    """Takes the second half of a file away."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swap(path: Path) -> None:
    """Puts another whole shard in a file's place."""
    shutil.copyfile(path.with_name("train-00000.parquet"), path)


def damage_a_page(path: Path) -> None:
    """Changes one bit amid the data, not in the description at the end."""
    flip_a_bit(path, 8 * 60)


def unfinish(folder: Path) -> None:
    """Takes what is known of the shards out of the manifest, as if the run had been killed before its end."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"] = {"num_images": manifest["splits"]["train"]["num_images"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_no_bit_flips_unseen(tokens: Path) -> None:
    """Whichever bit of a shard it is, loading names the file; with the bit back, it loads."""
    path, picks = tokens / SHARD, random.Random(0)
    for place in picks.sample(range(8 * path.stat().st_size), 100):
        flip_a_bit(path, place)
        with pytest.raises(DamagedShardError, match=SHARD):
            load_token_dataset(tokens)
        flip_a_bit(path, place)
    assert len(load_token_dataset(tokens)) == 11


@pytest.mark.parametrize("damage", [cut_off, swap, damage_a_page])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_is_named_and_written_again(
    damage: Callable[[Path], None],
    finished: bool,
    args: TokenizationArguments,
    tokens: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same command mends the data set, to the byte, whether or not the manifest knows hashes already."""
    before = contents(tokens)
    damage(tokens / SHARD)
    if not finished:
        unfinish(tokens)

    with caplog.at_level(logging.INFO):
        tokenize_dataset(args)
    assert SHARD in caplog.text and "damaged" in caplog.text and "finished already" not in caplog.text
    assert (tokens / f"damaged-{SHARD}").is_file()
    (tokens / f"damaged-{SHARD}").unlink()
    assert contents(tokens) == before


def test_a_file_is_read_again_only_when_it_changed(
    tokens: Path, monkeypatch: pytest.MonkeyPatch, args: TokenizationArguments
) -> None:
    """Each file is hashed once; another hash in the manifest, or another time of change, is noticed."""
    from hf_vq.data import manifest as module

    read: list[str] = []
    hash_of = module.file_sha256

    def counting(path: Path) -> str:
        read.append(path.name)
        return hash_of(path)

    monkeypatch.setattr(module, "file_sha256", counting)
    load_token_dataset(tokens)
    load_token_dataset(tokens)
    assert read == ["train-00000.parquet", SHARD, "train-00002.parquet"]

    os.utime(tokens / SHARD, ns=(1, 1))
    load_token_dataset(tokens)
    assert read[3:] == [SHARD]
    change(tokens, lambda manifest: manifest["splits"]["train"]["shards"][1].update(sha256="0" * 64))
    with pytest.raises(DamagedShardError, match=SHARD):
        load_token_dataset(tokens)


def change(folder: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites a manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    how(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "how",
    [
        lambda m: m["splits"]["train"]["shards"][0].update(file="../secret.parquet"),
        lambda m: m["splits"]["train"]["shards"][0].update(file="/tmp/secret.parquet"),
        lambda m: m["splits"]["train"]["shards"][0].update(file="sub/train-00000.parquet"),
        lambda m: m["splits"]["train"]["shards"][0].update(file=SHARD),
        lambda m: m["splits"]["train"]["shards"][0].update(file=7),
        lambda m: m["splits"]["train"]["shards"][0].update(num_rows=3),
        lambda m: m["splits"]["train"]["shards"][0].update(num_rows=-4),
        lambda m: m["splits"]["train"]["shards"][0].update(sha256=None),
        lambda m: m["splits"]["train"]["shards"][0].pop("sha256"),
        lambda m: m["splits"]["train"].update(shards=[]),
        lambda m: m["splits"]["train"].update(shards={"file": SHARD}),
        lambda m: m["splits"].update(train=None),
        lambda m: m.update(splits=[]),
        lambda m: m.update(format="1"),
        lambda m: m.update(format=True),
        lambda m: m.pop("tokenizer"),
        lambda m: m["tokenizer"].update(weights_sha256="abc"),
        lambda m: m["image_tokens"].update(shape="4 x 4"),
        lambda m: m["image_tokens"].update(shape=[4, -4]),
        lambda m: m["image_tokens"].update(shape=[4, 4.0]),
        lambda m: m["image_tokens"].update(num_codes=0),
        lambda m: m["image_tokens"].update(dtype="uint8"),
        lambda m: m["image_tokens"].update(dtype="float32"),
        lambda m: m["views"].update(names=None),
        lambda m: m.update(label_names=3),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    how: Callable[[dict[str, Any]], Any], tokens: Path, hub: HubServer
) -> None:
    """Loading and publishing say what is wrong with it; nothing outside of the folder is read, nothing published."""
    shutil.copyfile(tokens / SHARD, tokens.parent / "secret.parquet")
    change(tokens, how)

    with pytest.raises(ValueError, match="manifest.json' is not the manifest of a token data set: "):
        load_token_dataset(tokens)
    with pytest.raises(ValueError, match="manifest.json' is not the manifest of a token data set: "):
        push_token_dataset(tokens, "alice/tokens")
    assert not hub.store.repositories


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda m: m["image_tokens"].update(shape=[2, 4]), r"the manifest says 8 tokens of uint16"),
        (lambda m: m["image_tokens"].update(num_codes=257), r"there are 257 codes"),
    ],
)
def test_shards_that_do_not_fit_the_manifest_are_named(
    how: Callable[[dict[str, Any]], Any], message: str, tokens: Path
) -> None:
    """Tokens of another shape, or with ids that no code has, are not read."""
    change(tokens, how)
    with pytest.raises(DamagedShardError, match=message):
        load_token_dataset(tokens)


def test_links_out_are_refused(tokens: Path, hub: HubServer) -> None:
    """A shard is a file of the folder; a snapshot of the Hub's cache, all links to its blobs, is one."""
    os.replace(tokens / SHARD, tokens.parent / "elsewhere.parquet")
    (tokens / SHARD).symlink_to(tokens.parent / "elsewhere.parquet")
    for use in (load_token_dataset, lambda folder: push_token_dataset(folder, "alice/tokens")):
        with pytest.raises(ValueError, match=f"{SHARD}' is a link to outside"):
            use(tokens)
    assert not hub.store.repositories

    snapshot, blobs = tokens.parent / "cache" / "snapshots" / "abc", tokens.parent / "cache" / "blobs"
    shutil.copytree(tokens, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert len(load_token_dataset(snapshot)) == 11


def test_without_hashes_tokens_load_and_it_is_said(tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Version 0.1.0 wrote none; a shard of it that is cut off is named all the same."""
    change(tokens, lambda m: [shard.pop("sha256") for shard in m["splits"]["train"]["shards"]])
    with caplog.at_level(logging.WARNING):
        assert len(load_token_dataset(tokens)) == 11
    assert "have no hashes, as version 0.1.0 wrote them: not verified" in caplog.text

    cut_off(tokens / SHARD)
    with pytest.raises(DamagedShardError, match=SHARD):
        load_token_dataset(tokens)


def test_a_damaged_data_set_is_not_published(tokens: Path, hub: HubServer) -> None:
    """Not even an empty repository is made."""
    damage_a_page(tokens / SHARD)
    with pytest.raises(DamagedShardError, match=SHARD):
        push_token_dataset(tokens, "alice/tokens")
    assert not hub.store.repositories


def test_pages_carry_checksums_and_the_manifest_hashes(tokens: Path) -> None:
    """Other readers of parquet can verify the pages as well."""
    damaged = tokens.parent / "damaged.parquet"
    shutil.copyfile(tokens / SHARD, damaged)
    damage_a_page(damaged)
    with pytest.raises(OSError, match="(?i)crc|checksum"):
        pq.read_table(damaged, page_checksum_verification=True)
    shards = read_manifest(tokens)["splits"]["train"]["shards"]
    assert {shard["file"]: shard["sha256"] for shard in shards} == {
        name: digest for name, digest in contents(tokens).items() if name != "manifest.json"
    }
