"""A token data set that was begun: other settings are refused, splits share a folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_vq import load_token_dataset
from hf_vq.data.shards import ShardWriter, Views
from hf_vq.data.tokenize import tokenize_dataset
from hf_vq.data.tokens import read_manifest, token_features
from hf_vq.utils.hashes import weights_sha256

from ...tiny_tokens import PROCESSOR, arguments, contents, picture, save, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"images_per_shard": 5}, "images_per_shard: 4 there, 5 here"),
        ({"batch_size": 2}, "batch_size: 3 there, 2 here"),
        ({"cpu_threads": 2}, "cpu_threads: 1 there, 2 here"),
        ({"flip": True}, r"views.names: \['center'\] there, \['center', 'center-flip'\] here"),
    ],
)
def test_a_changed_setting_is_refused_with_the_difference(
    images: Path, tokenizer: str, tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    """What was begun stays as it is, and the message has both values."""
    args = arguments(tokenizer, images, tmp_path / "tokens")
    tokenize_dataset(args)
    before = contents(tmp_path / "tokens")

    with pytest.raises(ValueError, match=f"begun with other settings:\n  {difference}\n"):
        tokenize_dataset(dataclasses.replace(args, **change))
    assert contents(tmp_path / "tokens") == before


def test_a_run_gives_the_tokenizer_its_name(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """`emoji-vq/final` is called emoji-vq. What an earlier version began, under the name "final", is finished."""
    (tmp_path / "emoji-vq").mkdir()
    final = shutil.copytree(tokenizer, tmp_path / "emoji-vq" / "final")
    out = tmp_path / "tokens"
    args = arguments(str(final), images, out)
    tokenize_dataset(args)
    manifest = read_manifest(out)
    assert manifest["tokenizer"]["name"] == "emoji-vq"

    manifest["tokenizer"]["name"] = "final"
    (out / "manifest.json").write_text(json.dumps(manifest | {"splits": {}}))
    for shard in out.glob("*.parquet"):
        shard.unlink()
    tokenize_dataset(args)
    assert read_manifest(out)["tokenizer"]["name"] == "final" and read_manifest(out)["splits"]


def test_another_device_is_refused_with_the_difference(
    images: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU with other vector instructions may choose other codes at near ties."""
    args = arguments(tokenizer, images, tmp_path / "tokens")
    there = tokenize_dataset(args)["device_name"]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")

    with pytest.raises(ValueError, match=f"device_name: '{there}' there, '.* ABACUS' here"):
        tokenize_dataset(args)


def test_the_number_of_computing_threads_is_fixed(
    images: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch is encoded with as many as the manifest says, whatever the process has, which then has them back."""
    seen = []
    encode = ShardWriter._encode

    def watched(writer: ShardWriter, pixel_values: list[torch.Tensor]) -> np.ndarray:
        seen.append(torch.get_num_threads())
        return encode(writer, pixel_values)

    monkeypatch.setattr(ShardWriter, "_encode", watched)
    torch.set_num_threads(3)
    for threads in (1, 2):
        manifest = tokenize_dataset(arguments(tokenizer, images, tmp_path / f"{threads}", cpu_threads=threads))
        assert manifest["cpu_threads"] == threads
        assert len(seen) == 5 and set(seen) == {threads}
        seen.clear()
    assert torch.get_num_threads() == 3


def test_other_weights_or_images_are_refused(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """A tokenizer of the same name with other weights, a data set that grew, and shards of a lost manifest."""
    other = save(tiny(seed=1), tmp_path / "other" / Path(tokenizer).name)
    args = arguments(tokenizer, images, tmp_path / "tokens")
    tokenize_dataset(args)

    with pytest.raises(ValueError, match=f"tokenizer.weights_sha256: '{weights_sha256(tiny())}' there"):
        tokenize_dataset(dataclasses.replace(args, tokenizer=other))
    picture(99).save(images / "cats" / "99.png")
    with pytest.raises(ValueError, match="num_images: 11 there, 12 here"):
        tokenize_dataset(args)
    (tmp_path / "tokens" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="not made with these settings: train-00000.parquet"):
        tokenize_dataset(dataclasses.replace(args, tokenizer=other))


def test_splits_share_a_folder(tokenizer: str, tmp_path: Path) -> None:
    """All splits are tokenized unless some are named; one that is added later ends with the same files."""
    for path in ("train/a.png", "train/b.png", "val/c.png"):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        picture(len(path)).save(tmp_path / "images" / path)
    args = arguments(tokenizer, tmp_path / "images", tmp_path / "tokens")
    tokenize_dataset(args)
    for split in ("validation", "train"):
        tokenize_dataset(dataclasses.replace(args, splits=[split], output_dir=str(tmp_path / "later")))

    assert [len(load_token_dataset(tmp_path / "tokens", split)) for split in ("train", "validation")] == [2, 1]
    assert contents(tmp_path / "tokens") == contents(tmp_path / "later")
    with pytest.raises(ValueError, match="unknown split 'test' of .*: available are train, validation"):
        load_token_dataset(tmp_path / "tokens", "test")


def test_few_images_are_in_memory_at_a_time(tmp_path: Path) -> None:
    """However long the stream, only some batches of images are read before they are encoded."""
    read = done = most = 0
    columns = {"image": picture(0)}

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        nonlocal read, most
        for number in range(200):
            read += 1
            most = max(most, read - done)
            yield number, columns

    def count() -> None:
        nonlocal done
        done += 1

    with ThreadPoolExecutor(2) as executor:
        features = token_features(16, 300)
        writer = ShardWriter(tiny(), PROCESSOR, Views(), features, "", executor, batch_size=4, on_image=count)
        writer.write(tmp_path / "a.parquet", rows())
    assert done == 200 and 4 < most <= 10
