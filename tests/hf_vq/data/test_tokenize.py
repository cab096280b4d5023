"""Tokenizing a data set: what the shards hold, and that they are the same however they were written."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from torch.utils.data import DataLoader

import hf_vq
from hf_vq import VQImageProcessor, load_token_dataset
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


# ---- unreadable images


def test_unreadable_images_are_skipped_and_named(
    images: Path, tokenizer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are counted and named in the manifest, without the path to them; the other rows are there."""
    (images / "cats" / "01.png").write_text("not an image")
    with caplog.at_level(logging.WARNING):
        manifest = tokenize_dataset(arguments(tokenizer, images, tmp_path / "tokens"))

    record = manifest["splits"]["train"]
    assert (record["num_images"], record["num_rows"], record["num_skipped"]) == (11, 10, 1)
    assert list(record["skipped"]) == ["cats/01.png"]
    assert str(tmp_path) not in (tmp_path / "tokens" / "manifest.json").read_text()
    assert "skipped 1 of 11 images that cannot be read: cats/01.png" in caplog.text
    assert len(load_token_dataset(tmp_path / "tokens")) == 10


def test_strict_stops_at_an_unreadable_image(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """Also where an earlier run without it has skipped the image; and a strict run goes on without strict."""
    (images / "dogs" / "09.png").write_text("not an image")
    args = arguments(tokenizer, images, tmp_path / "tokens")
    strict = dataclasses.replace(args, strict=True)

    for run in (strict, args, strict):
        if run.strict:
            with pytest.raises(ValueError, match="cannot read dogs/09.png"):
                tokenize_dataset(run)
        else:
            tokenize_dataset(run)
    tokenize_dataset(arguments(tokenizer, images, tmp_path / "fresh"))
    assert contents(tmp_path / "tokens") == contents(tmp_path / "fresh")


def test_images_that_the_processor_refuses_are_skipped_and_named(images: Path, tmp_path: Path) -> None:
    """One that can be read but not preprocessed, here for its size, is no end of the run; under strict it is named."""
    tiny().save_pretrained(tmp_path / "tokenizer")
    VQImageProcessor(image_size=16, do_resize=False).save_pretrained(tmp_path / "tokenizer")
    picture(0, (8, 8)).save(images / "cats" / "01.png")
    args = arguments(str(tmp_path / "tokenizer"), images, tmp_path / "tokens")

    with pytest.raises(ValueError, match="cannot read cats/01.png .*8"):
        tokenize_dataset(dataclasses.replace(args, strict=True))
    record = tokenize_dataset(args)["splits"]["train"]
    assert (record["num_rows"], list(record["skipped"])) == (10, ["cats/01.png"])


def test_nothing_readable_is_an_error(tokenizer: str, tmp_path: Path) -> None:
    """A data set without one good image ends with the reasons, and is not taken for finished."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("not an image")

    with pytest.raises(ValueError, match="cannot read a.png"):
        tokenize_dataset(arguments(tokenizer, tmp_path / "images", tmp_path / "tokens"))
    with pytest.raises(ValueError, match="'train' of .* is not finished"):
        load_token_dataset(tmp_path / "tokens")


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


def test_a_process_writes_its_own_shards_alone(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """The second of two processes takes every second shard, of a stream as well."""
    args = arguments(tokenizer, images, tmp_path / "tokens")
    tokenize_dataset(args)
    second: Any = SimpleNamespace(
        process_index=1, num_processes=2, is_main_process=False, wait_for_everyone=lambda: None
    )
    for streaming in (False, True):
        for shard in (tmp_path / "tokens").glob("*.parquet"):
            shard.unlink()
        found = load_images(str(images), streaming=streaming)
        tokenize_split(*load_tokenizer(tokenizer), found, "train", args, None, second)
        assert list(contents(tmp_path / "tokens")) == ["manifest.json", "train-00001.parquet"]


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
