"""Images in tar files: found by path, pattern, folder and Hub id, map-style and as streams."""

from __future__ import annotations

import io
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import create_repo, upload_folder

from hf_vq.data.images import ImageDataset, ImageStream
from hf_vq.data.sources import image_splits, load_images
from hf_vq.data.streams import StreamParts
from hf_vq.data.tokenize import tokenize_dataset
from hf_vq.training.stream_loading import StreamLoader

from ...hub_server import HubServer
from ...tiny_tokens import arguments, contents
from .pictures import encoded, noise

COUNTS = {"emoji-train-000.tar": 4, "emoji-train-001.tar": 3, "emoji-val-000.tar": 2}


def write_tar(path: Path, count: int, end: str = "png", first: int = 0, content: bytes | None = None) -> None:
    """A tar file of so many labeled images, as WebDataset wants it."""
    with tarfile.open(path, "w") as file:
        for number in range(first, first + count):
            for name, value in (
                (f"{number:04}.{end}", content or encoded(noise(20, 20, number))),
                (f"{number:04}.cls", b"%d" % number),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(value)
                file.addfile(info, io.BytesIO(value))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two tar files to train on and one to validate on."""
    (tmp_path / "tars").mkdir()
    first = 0
    for name, count in COUNTS.items():
        write_tar(tmp_path / "tars" / name, count, first=first)
        first += count
    return tmp_path / "tars"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("place", ["folder", "pattern", "file", "hub"])
def test_tar_files_are_found(place: str, streaming: bool, tars: Path, hub: HubServer) -> None:
    """Rows are undecoded images with labels, in the order of the files; a word in a name says the split."""
    create_repo("alice/emoji", repo_type="dataset")
    upload_folder(repo_id="alice/emoji", repo_type="dataset", folder_path=tars)
    one = {
        "folder": tars,
        "pattern": tars / "*-train-*.tar",
        "file": tars / "emoji-train-001.tar",
        "hub": "alice/emoji",
    }
    name = str(one[place])

    rows: list[Any] = list(load_images(name, streaming=streaming))

    labels = range(4, 7) if place == "file" else range(7)
    assert [row["label"] for row in rows] == list(labels)
    assert [row["image"]["path"] for row in rows] == [f"{number:04}.png" for number in labels]
    assert [row["image"]["bytes"] for row in rows] == [encoded(noise(20, 20, number)) for number in labels]
    if place in ("folder", "hub"):
        assert sorted(image_splits(name)) == ["train", "validation"]
        assert [row["label"] for row in load_images(name, "validation", streaming=streaming)] == [7, 8]
    if not streaming:
        assert len(load_images(name, "train[:2]")) == 2


def test_a_stream_of_tar_files_is_read_by_workers(tars: Path) -> None:
    """Each file is a part, and each worker opens its own."""
    pytest.importorskip("torchdata")
    stream = load_images(str(tars), streaming=True)
    assert len(StreamParts(stream)) == 2 and StreamParts(stream).rows is None

    batches = list(islice(StreamLoader(ImageStream(stream, 16), 3, 2).batches(0, None), 2))

    seen = [set(batch["label"].tolist()) for batch in batches]
    assert seen[0] < set(range(4)) and seen[1] == set(range(4, 7))


def test_tar_files_are_tokenized_as_rows_and_as_a_stream(tokenizer: str, tars: Path, tmp_path: Path) -> None:
    """Both give the same bytes."""
    for streaming in (False, True):
        tokenize_dataset(arguments(tokenizer, tars, tmp_path / str(streaming), streaming=streaming))

    assert len(contents(tmp_path / "True")) == 4
    assert contents(tmp_path / "True") == contents(tmp_path / "False")


def test_what_lies_beside_is_told(tars: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pattern of several kinds is refused; of a folder parquet files are read, and the others named."""
    datasets.Dataset.from_list([{"image": encoded(noise(8, 8))}]).to_parquet(tars / "train.parquet")
    (tars / "notes.txt").write_text("x")
    for pattern, kinds in (("*", ".parquet, .tar, .txt"), ("*.t*", ".tar, .txt"), ("n*", ".txt")):
        with pytest.raises(ValueError, match=f"{kinds}: expected parquet or tar files alone"):
            load_images(str(tars / pattern))

    assert len(load_images(str(tars))) == 1
    assert "left out 3 files that are not parquet files: emoji-train-000.tar" in caplog.text


def test_a_tar_of_anything_is_an_error(tmp_path: Path) -> None:
    """One without images says which columns it has."""
    write_tar(tmp_path / "a.tar", 3, end="txt", content=b"a word")
    with pytest.raises(ValueError, match="cannot tell which column holds the images.*txt"):
        load_images(str(tmp_path / "a.tar"))


def test_files_whose_members_are_compressed_as_a_whole(tmp_path: Path) -> None:
    """A .tar.gz is a tar file, too."""
    write_tar(tmp_path / "a.tar", 3)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as packed, tarfile.open(tmp_path / "a.tar") as plain:
        for member in plain.getmembers():
            packed.addfile(member, plain.extractfile(member))

    for streaming in (False, True):
        dataset = load_images(str(tmp_path / "b.tar.gz"), streaming=streaming)
        assert [row["label"] for row in dataset] == [0, 1, 2]
    assert ImageDataset(load_images(str(tmp_path / "b.tar.gz")), 16)[2]["pixel_values"].shape == (3, 16, 16)
