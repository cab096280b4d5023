"""Tokenizing a data set: what the shards hold, and that they are the same however they were written."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from torch.utils.data import DataLoader

import hf_vq
from hf_vq import VQImageProcessor, load_token_dataset
from hf_vq.data.manifest import DamagedShardError
from hf_vq.data.shard_files import with_lengths
from hf_vq.data.shards import ShardWriter, Views
from hf_vq.data.sources import load_images
from hf_vq.data.tokenize import tokenize_dataset, tokenize_split
from hf_vq.data.tokens import read_manifest, token_features
from hf_vq.hub.loading import load_tokenizer
from hf_vq.utils.hashes import weights_sha256

from ...tiny_tokens import PROCESSOR, arguments, contents, picture, save, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- what is in it


@pytest.mark.parametrize("fields", [{}, {"quantizer_type": "group", "num_groups": 2}])
def test_decoding_a_shard_gives_the_reconstructions(images: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    """Stored tokens, decoded, are to the bit what the model makes of the images that its processor preprocesses."""
    model = tiny(**fields)
    tokenize_dataset(arguments(save(model, tmp_path / "tokenizer"), images, tmp_path / "tokens"))

    files = [row["image"]["path"] for row in load_images(str(images))][:4]
    pictures: list[PIL.Image.Image] = [PIL.Image.open(file) for file in files]
    pixel_values = PROCESSOR(pictures, return_tensors="pt").pixel_values
    batch = load_token_dataset(tmp_path / "tokens")[:4]
    image_tokens = torch.stack(batch["image_tokens"])
    with torch.no_grad():
        expected = model(pixel_values)
        decoded = model.decode(image_tokens).decoded_pixel_values
    assert len(image_tokens.unique()) > 10
    assert torch.equal(image_tokens, expected.image_tokens)
    assert torch.equal(decoded, expected.decoded_pixel_values)


def test_rows_hold_tokens_label_key_and_view(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """A row is int64 (h, w), an int label with a name, the path below the folder, and the view's name."""
    tokenize_dataset(arguments(tokenizer, images, tmp_path / "tokens"))

    rows: Any = load_token_dataset(tmp_path / "tokens")
    assert rows[0]["image_tokens"].dtype == torch.int64 and rows[0]["image_tokens"].shape == (4, 4)
    assert {name: rows[9][name] for name in ("label", "key", "view")} == {
        "label": 1,
        "key": "dogs/06.png",
        "view": "center",
    }
    assert rows.features["label"].names == read_manifest(tmp_path / "tokens")["label_names"] == ["cats", "dogs"]
    assert len(set(rows["key"])) == len(rows) == 11

    batch = next(iter(DataLoader(rows.shuffle(seed=0), 5, num_workers=1)))
    assert batch["image_tokens"].shape == (5, 4, 4) and batch["image_tokens"].dtype == torch.int64
    assert batch["label"].dtype == torch.int64 and len(batch["key"]) == 5


@pytest.mark.parametrize(
    ("num_codes", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_tokens_take_the_smallest_type(num_codes: int, dtype: str) -> None:
    """One byte up to 256 codes, two up to 65,536, then four."""
    assert token_features(16, num_codes)["image_tokens"] == datasets.List(datasets.Value(dtype), length=16)


def test_large_ids_survive(images: Path, tmp_path: Path) -> None:
    """Ids beyond 255 come back as they were encoded."""
    tokenize_dataset(arguments(save(tiny(num_codes=300), tmp_path / "tokenizer"), images, tmp_path / "tokens"))

    largest = max(row["image_tokens"].max() for row in load_token_dataset(tmp_path / "tokens"))
    assert 255 < largest < 300
    assert (
        pq.read_schema(tmp_path / "tokens" / "train-00000.parquet").field("image_tokens").type.value_type == "uint16"
    )


def test_the_manifest_says_what_made_the_tokens(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """Tokenizer and its weights' hash, preprocessing, shape, codes, package version and rows of each shard."""
    manifest = tokenize_dataset(arguments(tokenizer, images, tmp_path / "tokens"))

    assert manifest == json.loads((tmp_path / "tokens" / "manifest.json").read_text())
    assert manifest["tokenizer"] == {
        "name": Path(tokenizer).name,
        "revision": None,
        "weights_sha256": weights_sha256(tiny()),
    }
    assert manifest["image_tokens"] == {"shape": [4, 4], "dtype": "uint16", "num_codes": 300}
    assert manifest["versions"] == {
        "hf_vq": hf_vq.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
    }
    assert manifest["preprocessing"]["size"] == {"shortest_edge": 16}
    assert [shard["num_rows"] for shard in manifest["splits"]["train"]["shards"]] == [4, 4, 3]


def test_rows_of_tables_are_named_by_their_number(tokenizer: str, tmp_path: Path) -> None:
    """In parquet files names may repeat: the key begins with the row's number; images without labels have none."""
    buffer = io.BytesIO()
    picture(0).save(buffer, "png")
    rows = {"image": [{"bytes": buffer.getvalue(), "path": path} for path in ("a.png", "a.png", None)]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    tokenize_dataset(arguments(tokenizer, tmp_path / "train.parquet", tmp_path / "tokens"))

    found: Any = load_token_dataset(tmp_path / "tokens")
    assert list(found["key"]) == ["000000000-a.png", "000000001-a.png", "000000002"]
    assert found.column_names == ["image_tokens", "key", "view"]


def test_missing_labels_are_minus_one(tokenizer: str, tmp_path: Path) -> None:
    """An image without a label in a labeled data set can be collated all the same."""
    buffer = io.BytesIO()
    picture(0).save(buffer, "png")
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}] * 2, "label": [3, None]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    tokenize_dataset(arguments(tokenizer, tmp_path / "train.parquet", tmp_path / "tokens"))

    assert [row["label"] for row in load_token_dataset(tmp_path / "tokens")] == [3, -1]


def test_views_of_an_image_follow_each_other(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """Crops and mirror images are encoded as what they are, and are next to the whole image."""
    fields: dict[str, Any] = {"flip": True, "num_crops": 1, "crop_scale": 0.5, "batch_size": 5}
    tokenize_dataset(arguments(tokenizer, images, tmp_path / "tokens", **fields))

    rows: Any = load_token_dataset(tmp_path / "tokens")
    assert len(rows) == 44
    assert [(row["key"], row["view"]) for row in rows.select(range(4, 8))] == [
        ("cats/02.png", view) for view in ("center", "center-flip", "crop-1", "crop-1-flip")
    ]
    image = PIL.Image.open(images / "cats" / "02.png")
    crops = [
        image.crop((left, top, left + 11, top + 11))
        for left in range(image.width - 10)
        for top in range(image.height - 10)
    ]
    model = tiny()
    with torch.no_grad():
        center = PROCESSOR(image, return_tensors="pt").pixel_values
        whole = model.encode(torch.cat([center, center.flip(-1)])).image_tokens
        candidates = PROCESSOR(crops, return_tensors="pt").pixel_values
        plain, mirrored = (model.encode(pixels).image_tokens for pixels in (candidates, candidates.flip(-1)))
    stored = torch.stack(rows[4:8]["image_tokens"])
    assert torch.equal(stored[:2], whole) and not torch.equal(stored[0], stored[1])
    places = (plain == stored[2]).flatten(1).all(1) & (mirrored == stored[3]).flatten(1).all(1)
    assert places.any()


def test_crops_depend_on_seed_and_image_alone() -> None:
    """The same seed and number give the same crops, however many follow; another seed or number others."""
    image = picture(0, (64, 48))

    first = Views(2, 0.5, seed=0)(image, 7, PROCESSOR)
    assert first.shape == (3, 3, 16, 16)
    assert torch.equal(first, Views(4, 0.5, seed=0)(image, 7, PROCESSOR)[:3])
    assert not torch.equal(first[1], first[2])
    for other in (Views(2, 0.5, seed=1)(image, 7, PROCESSOR), Views(2, 0.5, seed=0)(image, 8, PROCESSOR)):
        assert torch.equal(first[0], other[0]) and not torch.equal(first[1:], other[1:])


def test_a_processor_that_differs_is_obeyed(images: Path, tmp_path: Path) -> None:
    """Pixels are what the tokenizer's own processor makes of images, not what the package's default would."""
    model, processor = tiny(), VQImageProcessor(image_size=16, resample=0)
    model.save_pretrained(tmp_path / "tokenizer")
    processor.save_pretrained(tmp_path / "tokenizer")
    manifest = tokenize_dataset(arguments(str(tmp_path / "tokenizer"), images, tmp_path / "tokens"))

    image = PIL.Image.open(images / "cats" / "01.png")
    with torch.no_grad():
        expected = model.encode(processor(image, return_tensors="pt").pixel_values).image_tokens[0]
    row: Any = load_token_dataset(tmp_path / "tokens")[0]
    assert torch.equal(row["image_tokens"], expected)
    assert manifest["preprocessing"]["resample"] == 0
    assert not torch.equal(model.encode(PROCESSOR(image, return_tensors="pt").pixel_values).image_tokens[0], expected)


# ---- the same bytes


def test_a_stream_gives_the_same_files(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """Read as a stream of unknown length, a data set becomes the same bytes; a finished one is not read again."""
    (images / "cats" / "01.png").write_text("not an image")
    args = arguments(tokenizer, images, tmp_path / "tokens")
    streamed = dataclasses.replace(args, output_dir=str(tmp_path / "streamed"), streaming=True)
    tokenize_dataset(args)
    tokenize_dataset(streamed)

    assert len(contents(tmp_path / "tokens")) == 4
    assert contents(tmp_path / "tokens") == contents(tmp_path / "streamed")
    for file in images.rglob("*.png"):
        file.write_text("unread")
    tokenize_dataset(dataclasses.replace(streamed, strict=False))
    assert contents(tmp_path / "tokens") == contents(tmp_path / "streamed")


def test_only_what_is_missing_is_written_again(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """A deleted shard comes back with the same bytes; those that are there are not touched."""
    args = arguments(tokenizer, images, tmp_path / "tokens")
    tokenize_dataset(args)
    before = contents(tmp_path / "tokens")
    (tmp_path / "tokens" / "train-00001.parquet").unlink()
    kept = (tmp_path / "tokens" / "train-00002.parquet").stat()
    with pytest.raises(FileNotFoundError, match="1 of 3 files .* are missing, train-00001.parquet"):
        load_token_dataset(tmp_path / "tokens")

    tokenize_dataset(args)
    assert contents(tmp_path / "tokens") == before
    assert (tmp_path / "tokens" / "train-00002.parquet").stat() == kept


def test_a_half_written_shard_never_has_its_name(
    images: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends amid the writing of a shard leaves nothing that the next run would take for one."""

    def interrupted(table: Any, file: io.BufferedIOBase, **options: Any) -> None:
        file.write(b"PAR1")
        raise KeyboardInterrupt

    args = arguments(tokenizer, images, tmp_path / "tokens")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pq, "write_table", interrupted)
        tokenize_dataset(args)
    assert list(contents(tmp_path / "tokens")) == ["manifest.json"]

    tokenize_dataset(args)
    tokenize_dataset(dataclasses.replace(args, output_dir=str(tmp_path / "fresh")))
    assert contents(tmp_path / "tokens") == contents(tmp_path / "fresh")


def process(rank: int, processes: int) -> Any:
    """One of several processes; here there are no others to wait for, so each takes itself for the main one."""
    return SimpleNamespace(
        process_index=rank, num_processes=processes, is_main_process=True, wait_for_everyone=lambda: None
    )


class Counted:
    """A stream of 200 labeled images in 8 files, which counts the rows that are read.

    Args:
        says: Whether the stream says how many rows its files have.
    """

    def __init__(self, says: bool = True) -> None:
        self.read = 0
        self.bytes = [io.BytesIO() for _ in range(5)]
        for number, file in enumerate(self.bytes):
            picture(number).save(file, "png")
        features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
        stream = datasets.IterableDataset.from_generator(self._rows, features, gen_kwargs={"files": list(range(8))})
        self.stream = with_lengths(stream, [25] * 8) if says else stream

    def _rows(self, files: list[int]) -> Iterator[dict[str, Any]]:
        for file in files:
            for number in range(25 * file, 25 * file + 25):
                self.read += 1
                yield {"image": {"bytes": self.bytes[number % 5].getvalue(), "path": None}, "label": number}


def interrupt(*arguments: Any) -> None:
    """In place of something that is stopped."""
    raise KeyboardInterrupt


def test_a_process_reads_its_own_rows_alone(tokenizer: str, tmp_path: Path) -> None:
    """1, 2 and 4 processes read 200, 100 and 50 rows each, a restart those of missing shards; the bytes are equal."""
    args = arguments(tokenizer, "somewhere", tmp_path, images_per_shard=25, batch_size=8)
    loaded = load_tokenizer(tokenizer)
    made: dict[int, dict[str, str]] = {}
    for processes in (1, 2, 4):
        made[processes] = {}
        for rank in range(processes):
            counted, folder = Counted(), tmp_path / f"{processes}-{rank}"
            folder.mkdir()
            own = dataclasses.replace(args, output_dir=str(folder))
            with nullcontext() if processes == 1 else pytest.raises(DamagedShardError, match="No such file"):
                tokenize_split(*loaded, counted.stream, "train", own, None, process(rank, processes))
            assert counted.read == 200 / processes
            shards = {name: value for name, value in contents(folder).items() if name != "manifest.json"}
            assert len(shards) == 8 / processes and not shards.keys() & made[processes].keys()
            made[processes] |= shards
    assert made[1] == made[2] == made[4]

    counted, folder = Counted(), tmp_path / "1-0"
    for number in (2, 5):
        (folder / f"train-0000{number}.parquet").unlink()
    tokenize_split(
        *loaded, counted.stream, "train", dataclasses.replace(args, output_dir=str(folder)), None, process(0, 1)
    )
    assert counted.read == 50
    assert made[1] == {name: value for name, value in contents(folder).items() if name != "manifest.json"}


def test_shards_that_begin_amid_a_file_are_the_same(tokenizer: str, tmp_path: Path) -> None:
    """Where files and shards do not fit, a process reads less than a file more; unknown lengths are counted once."""
    args = arguments(tokenizer, "somewhere", tmp_path, images_per_shard=30, batch_size=8)
    loaded = load_tokenizer(tokenizer)
    made: dict[str, dict[str, str]] = {}
    for name, says in (("whole", True), ("counted", False), ("second", True)):
        counted, folder = Counted(says), tmp_path / name
        folder.mkdir()
        own = dataclasses.replace(args, output_dir=str(folder))
        if name == "second":  # 4 of 7 shards, from row 90 on: the fourth file is read from its beginning
            with pytest.raises(DamagedShardError):
                tokenize_split(*loaded, counted.stream, "train", own, None, process(1, 2))
            assert counted.read == 200 - 75
        elif name == "counted":
            with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
                patch.setattr(ShardWriter, "write", interrupt)
                tokenize_split(*loaded, counted.stream, "train", own, None, process(0, 1))
            assert counted.read == 200
            tokenize_split(*loaded, counted.stream, "train", own, None, process(0, 1))
            assert counted.read == 400
        else:
            tokenize_split(*loaded, counted.stream, "train", own, None, process(0, 1))
            assert counted.read == 200
        made[name] = contents(folder)
    assert made["counted"] == made["whole"]
    del made["second"]["manifest.json"]
    assert len(made["second"]) == 4 and made["second"].items() <= made["whole"].items()


def test_a_stream_that_changed_is_an_error(tokenizer: str, tmp_path: Path) -> None:
    """A file with fewer rows than were counted would leave images out in silence."""
    counted = Counted()
    assert counted.stream.info.splits is not None
    stream = with_lengths(counted.stream, [25] * 7 + [26])
    with pytest.raises(ValueError, match="Part 7 of the stream has 25 rows where 26 were counted"):
        args = arguments(tokenizer, "somewhere", tmp_path, images_per_shard=100)
        tokenize_split(*load_tokenizer(tokenizer), stream, "train", args, None, process(0, 1))
