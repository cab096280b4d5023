"""Image data sets: what is found, how it is decoded, and what happens to files that cannot be read."""

import io
import logging
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from hf_vq import VQConfig
from hf_vq.data.images import ImageDataset, ImageStream, convert_image, image_to_tensor
from hf_vq.data.sources import load_images
from hf_vq.modeling.image_processing_vq import VQImageProcessor


def noise(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """An RGB image in which every pixel is different."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def encoded(image: PIL.Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the Arrow copies of parquet files out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images in two classes, at two depths."""
    for number in range(6):
        path = tmp_path / "images" / ("cats" if number % 2 else "dogs/brown") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(40, 32, number).save(path)
    return tmp_path / "images"


# ---- finding


def test_sample_data_set_has_both_splits_and_labels():
    """The shipped sample needs no download: 1,700 and 206 labelled 32 px images."""
    train, test = load_images("noto-emoji-32"), load_images("noto-emoji-32", "test")

    assert (len(train), len(test)) == (1700, 206)
    assert set(train.column_names) == {"image", "label"}
    assert isinstance(train[0]["image"]["bytes"], bytes)
    assert ImageDataset(test, 32)[0]["pixel_values"].shape == (3, 32, 32)


def test_folder_gives_every_image_in_sorted_order_with_class_labels(folder: Path):
    """Images are found at any depth, sorted, and the first sub-folder is the label."""
    found = load_images(str(folder))

    assert [Path(row["image"]["path"]).name for row in found] == ["1.png", "3.png", "5.png", "0.png", "2.png", "4.png"]
    assert found.features["label"].names == ["cats", "dogs"]
    assert found["label"] == [0, 0, 0, 1, 1, 1]


def test_folder_splits_share_one_list_of_classes(folder: Path, tmp_path: Path):
    """Sub-folders named like splits are splits, and a label means the same in each of them."""
    root = tmp_path / "split"
    for path in ("train/a/0.png", "train/c/1.png", "val/b/2.png", "val/c/3.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        noise(8, 8).save(root / path)

    assert load_images(str(root))["label"] == [0, 2]
    assert load_images(str(root), "validation")["label"] == [1, 2]
    with pytest.raises(ValueError, match="unknown split 'test'.*train, validation"):
        load_images(str(root), "test")


def test_folder_without_splits_can_be_sliced(folder: Path):
    """A split for evaluation can be cut from a plain folder, with nothing in both parts."""
    parts = [load_images(str(folder), spec) for spec in ("train[:4]", "train[4:]")]

    names = [row["image"]["path"] for part in parts for row in part]
    assert [len(part) for part in parts] == [4, 2]
    assert len(set(names)) == 6


def test_files_that_are_no_images_are_left_out_by_name(folder: Path, caplog: pytest.LogCaptureFixture):
    """Other files in a folder are left out, with their count and names in a warning; hidden files without."""
    (folder / "notes.txt").write_text("x")
    (folder / ".DS_Store").write_text("x")

    assert len(load_images(str(folder))) == 6
    assert "left out 1 files" in caplog.text and "notes.txt" in caplog.text


def test_parquet_files_are_found_by_path_pattern_and_folder(tmp_path: Path):
    """One file is the train split whatever its name; patterns and folders take the split from the names."""
    for name, count in (("train-00000-of-00002", 3), ("train-00001-of-00002", 2), ("test", 1)):
        rows = {"picture": [{"bytes": encoded(noise(8, 8)), "path": None}] * count, "caption": ["x"] * count}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}.parquet")

    assert len(load_images(str(tmp_path), image_column="picture")) == 5
    assert len(load_images(str(tmp_path / "*.parquet"), "test", image_column="picture")) == 1
    single = load_images(str(tmp_path / "test.parquet"), image_column="picture")
    assert single.column_names == ["image"] and len(single) == 1
    assert ImageDataset(single, 8)[0]["pixel_values"].shape == (3, 8, 8)


def test_unknown_columns_are_errors_that_list_what_is_there(tmp_path: Path):
    """A wrong or missing image column is an error that lists the columns."""
    datasets.Dataset.from_dict({"picture": [b"x"], "caption": ["x"]}).to_parquet(tmp_path / "a.parquet")

    with pytest.raises(ValueError, match="unknown image column 'img'.*picture, caption"):
        load_images(str(tmp_path), image_column="img")
    with pytest.raises(ValueError, match="image_column.*picture, caption"):
        load_images(str(tmp_path))


def test_nothing_found_says_what_was_expected(tmp_path: Path):
    """An empty folder, a missing folder and a pattern without a match are errors that name the place."""
    with pytest.raises(FileNotFoundError, match="no images found in .*expected files ending in"):
        load_images(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_images(str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match="no parquet file matches"):
        load_images(str(tmp_path / "*.parquet"))


# ---- decoding


def test_wide_image_is_resized_by_its_shorter_edge_and_cropped_in_the_middle():
    """The result is Pillow's bicubic resize of the shorter edge, then the centre, scaled to [-1, 1]."""
    image = noise(90, 50)

    resized = image.resize((int(20 * 90 / 50), 20), PIL.Image.Resampling.BICUBIC).crop((8, 0, 28, 20))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1).double() / 127.5 - 1
    pixel_values = image_to_tensor(image, 20)
    assert pixel_values.dtype == torch.float32 and pixel_values.is_contiguous()
    torch.testing.assert_close(pixel_values.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["I;16", "I", "I;16B", "F", "L", "RGBA", "LA", "P", "1", "CMYK"])
def test_every_mode_keeps_its_brightness(mode: str):
    """Half-bright images stay half-bright in every mode: 16 bits are scaled, white shines through alpha."""
    images = {
        "I;16": PIL.Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)),
        "I;16B": PIL.Image.frombytes("I;16B", (4, 4), np.full((4, 4), 128 * 257, ">u2").tobytes()),
        "I": PIL.Image.fromarray(np.full((4, 4), 128 * 257, np.int32)),
        "F": PIL.Image.fromarray(np.full((4, 4), 128 / 255, np.float32)),
        "RGBA": PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 127)),
        "LA": PIL.Image.new("LA", (4, 4), (0, 127)),
        "P": PIL.Image.new("RGB", (4, 4), (128, 128, 128)).convert("P", palette=PIL.Image.Palette.ADAPTIVE),
        "1": PIL.Image.new("1", (4, 4), 1),
        "CMYK": PIL.Image.new("CMYK", (4, 4), (127, 127, 127, 0)),
    }
    image = images.get(mode, PIL.Image.new("L", (4, 4), 128))
    assert image.mode == mode

    for channels in (1, 3):
        level = np.asarray(convert_image(image, channels)).mean()
        assert level == pytest.approx(255 if mode == "1" else 128, abs=1)


@pytest.mark.parametrize("pixel_range", [[-1.0, 1.0], [0.0, 1.0]])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_preprocessing_equals_the_image_processor(tmp_path: Path, num_channels: int, pixel_range: list[float]):
    """What the model is trained on is bit for bit what the published processor makes of the same file."""
    images = {
        "wide": noise(57, 40),
        "tall": noise(33, 71),
        "small": noise(9, 14),
        "alpha": noise(40, 35).convert("RGBA"),
        "grey": noise(31, 45).convert("L"),
        "deep": PIL.Image.fromarray(np.random.default_rng(0).integers(0, 65536, (41, 36), dtype=np.uint16)),
        "palette": noise(32, 32).convert("P"),
    }
    images["alpha"].putalpha(noise(40, 35, 1).convert("L"))
    processor = VQImageProcessor.for_config(
        VQConfig(image_size=32, num_channels=num_channels, pixel_range=pixel_range)
    )
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    images["keyed"] = PIL.Image.new("RGB", (32, 32), "red")  # one colour of an RGB file is declared transparent
    images["keyed"].save(tmp_path / "keyed.png", transparency=(255, 0, 0))
    dataset = ImageDataset(load_images(str(tmp_path)), 32, num_channels=num_channels, pixel_range=pixel_range)

    for index, name in enumerate(sorted(images)):
        with PIL.Image.open(tmp_path / f"{name}.png") as image:
            expected = processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(dataset[index]["pixel_values"], expected), name


def test_transparent_palette_colour_becomes_white():
    """A palette image whose background is transparent lies on white, not on the hidden colour."""
    image = PIL.Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    buffer = io.BytesIO()
    image.save(buffer, "png", transparency=0)

    item = ImageDataset([{"image": {"bytes": buffer.getvalue(), "path": None}}], 4)[0]
    assert (item["pixel_values"] == 1).all()


def test_16_bit_png_file_is_not_clipped(tmp_path: Path):
    """A 16-bit grey file comes out with its full range, dark to bright."""
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    PIL.Image.fromarray(ramp).save(tmp_path / "ramp.png")

    pixel_values = ImageDataset(load_images(str(tmp_path)), 32)[0]["pixel_values"]
    expected = torch.from_numpy(ramp / 65535 * 2 - 1).float().expand(3, -1, -1)
    torch.testing.assert_close(pixel_values, expected, atol=1.01 / 255, rtol=0)


def test_exif_orientation_is_applied(tmp_path: Path):
    """A photograph stored on its side is turned upright."""
    image = PIL.Image.new("RGB", (20, 20), "black")
    image.paste("white", (0, 0, 20, 10))
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)

    pixel_values = ImageDataset(load_images(str(tmp_path)), 20)[0]["pixel_values"]
    assert (pixel_values[:, :10] == -1).all() and (pixel_values[:, 10:] == 1).all()


def test_small_images_are_enlarged_with_one_warning(caplog: pytest.LogCaptureFixture):
    """Images smaller than the crop are enlarged; the first is named in a warning, all are counted."""
    dataset = ImageDataset([noise(8, 5), noise(9, 9), noise(16, 16)], 16)

    assert [dataset[index]["pixel_values"].shape for index in range(3)] == [(3, 16, 16)] * 3
    assert dataset.num_enlarged == 2
    assert len(caplog.records) == 1 and "row 0 is enlarged (8x5" in caplog.text


# ---- augmentation


def test_augmentation_depends_on_seed_epoch_and_index_only():
    """A resumed run sees the same crops, whatever was read before; another epoch or seed sees others."""
    images = [noise(64, 32, seed) for seed in range(8)]

    def crops(seed: int, epoch: int, order: list[int]) -> torch.Tensor:
        dataset = ImageDataset(images, 32, random_crop=True, random_flip=True, seed=seed)
        dataset.set_epoch(epoch)
        found = {index: dataset[index]["pixel_values"] for index in order}
        return torch.stack([found[index] for index in sorted(found)])

    reference = crops(0, 0, list(range(8)))
    assert torch.equal(reference, crops(0, 0, [7, 3, 3, 0, 1, 2, 4, 5, 6]))
    assert not torch.equal(reference, crops(0, 1, list(range(8))))
    assert not torch.equal(reference, crops(1, 0, list(range(8))))


def test_random_crops_reach_both_ends_and_flips_are_even():
    """Crops cover the whole longer edge, from the first pixel to the last, and about half are mirrored."""
    ramp = np.broadcast_to(np.arange(20, dtype=np.uint8)[None, :, None], (16, 20, 3))
    dataset = ImageDataset([PIL.Image.fromarray(ramp.copy())] * 200, 16, random_crop=True, random_flip=True)

    rows = [((dataset[index]["pixel_values"][0, 0] + 1) * 127.5).round() for index in range(200)]
    assert {int(row.min()) for row in rows} == {0, 1, 2, 3, 4}
    assert 70 < sum(bool(row[0] > row[1]) for row in rows) < 130


def test_lasting_workers_hear_of_a_new_epoch():
    """`set_epoch` reaches workers that live on between epochs."""
    dataset = ImageDataset([noise(64, 32)] * 4, 32, random_crop=True)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, persistent_workers=True)
    for epoch in (0, 5):
        dataset.set_epoch(epoch)
        (batch,) = loader

        assert torch.equal(batch["pixel_values"], torch.stack([dataset[i]["pixel_values"] for i in range(4)]))


# ---- unreadable files


@pytest.fixture
def damaged(folder: Path) -> Path:
    """The folder, with one truncated image and one text file that is called an image."""
    whole = (folder / "cats/3.png").read_bytes()
    (folder / "cats/3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cats/5.png").write_text("not an image")
    return folder


def test_unreadable_images_are_replaced_and_named(damaged: Path, caplog: pytest.LogCaptureFixture):
    """The next readable image stands in, and each bad file is told once, with its reason."""
    dataset = ImageDataset(load_images(str(damaged)), 32)
    for _ in range(2):
        items = [dataset[index]["pixel_values"] for index in range(6)]

    assert torch.equal(items[1], items[3]) and torch.equal(items[2], items[3])
    assert {Path(name).name for name in dataset.bad_images} == {"3.png", "5.png"}
    assert len(caplog.records) == 2 and all("cats" in record.getMessage() for record in caplog.records)


def test_worker_findings_are_seen_by_the_main_process(damaged: Path):
    """What a worker cannot read is in the record of the process that started it."""
    dataset = ImageDataset(load_images(str(damaged)), 32)
    assert dataset.bad_images == {}

    assert len(list(DataLoader(dataset, num_workers=2))) == 6
    assert len(dataset.bad_images) == 2


def test_strict_data_sets_name_the_unreadable_file(damaged: Path):
    """Under `strict` the first unreadable image is an error that names it."""
    dataset = ImageDataset(load_images(str(damaged)), 32, strict=True)
    assert dataset[0]["pixel_values"].shape == (3, 32, 32)

    with pytest.raises(ValueError, match=r"cannot read image .*cats.3\.png.*truncated"):
        dataset[1]
    with pytest.raises(ValueError, match=r"cats.3\.png"):
        dataset.find_bad_images()


def test_check_pass_reports_all_bad_images_at_once(damaged: Path, caplog: pytest.LogCaptureFixture):
    """`find_bad_images` gives one warning with the count and the names."""
    dataset = ImageDataset(load_images(str(damaged)), 48)

    assert len(dataset.find_bad_images()) == 2
    messages = [record.getMessage() for record in caplog.records]
    assert "skipping 2 of 6 images" in messages[0] and "3.png" in messages[0] and "5.png" in messages[0]
    assert messages[1:] == ["4 of 6 images are smaller than 48 pixels: enlarged"]


def test_data_set_without_a_readable_image_is_an_error(tmp_path: Path):
    """Where nothing can be read, the first access raises instead of searching for ever."""
    (tmp_path / "a.png").write_text("not an image")
    dataset = ImageDataset(load_images(str(tmp_path)), 32)

    with pytest.raises(ValueError, match=r"none of the 1 images can be read: .*a\.png"):
        dataset[0]


# ---- streams


@pytest.mark.parametrize("pixel_range", [[-1.0, 1.0], [0.0, 1.0]])
def test_stream_gives_the_examples_of_the_map_style_data_set(pixel_range: list[float]):
    """Streaming changes how the data are read, not what they are."""
    stream = ImageStream(load_images("noto-emoji-32", "test", streaming=True), 32, pixel_range=pixel_range)
    dataset = ImageDataset(load_images("noto-emoji-32", "test"), 32, pixel_range=pixel_range)

    examples = list(stream)
    assert len(examples) == 206
    for index in (0, 100, 205):
        assert torch.equal(examples[index]["pixel_values"], dataset[index]["pixel_values"])
        assert examples[index]["label"] == dataset[index]["label"]


def test_other_ranges_are_refused():
    """Data sets and the function beneath them know two ranges, and both have [-1, 1] by default."""
    images = [noise(32, 32)]
    for make in (ImageDataset, ImageStream, lambda rows, size, **fields: image_to_tensor(rows[0], size, **fields)):
        with pytest.raises(ValueError, match=r"must be \[-1.0, 1.0\] or \[0.0, 1.0\], got \[0.0, 255.0\]"):
            make(images, 32, pixel_range=[0.0, 255.0])
    assert ImageDataset(images, 32)[0]["pixel_values"].min() < -0.9


def test_ranks_and_workers_share_a_stream_without_overlap(folder: Path):
    """Two ranks with two workers each see every image once, shuffled or not."""
    whole = {
        example["pixel_values"].sum().item() for example in ImageStream(load_images(str(folder), streaming=True), 32)
    }
    for buffer in (0, 4):
        seen = []
        for rank in range(2):
            source = load_images(str(folder), streaming=True)
            stream = ImageStream(source, 32, shuffle_buffer=buffer, rank=rank, world_size=2)
            batches = list(DataLoader(stream, batch_size=None, num_workers=2))
            seen += [example["pixel_values"].sum().item() for example in batches]

        assert len(seen) == 6 and set(seen) == whole


def test_interrupted_stream_resumes_with_the_same_examples(folder: Path):
    """A fresh stream with the saved state goes on at the next example, with the same augmentation."""

    def fresh(epoch: int = 3) -> ImageStream:
        stream = ImageStream(load_images(str(folder), streaming=True), 32, random_crop=True, random_flip=True)
        stream.set_epoch(epoch)
        return stream

    expected = [example["pixel_values"] for example in fresh()]
    first = fresh()
    iterator = iter(first)
    for _ in range(2):
        next(iterator)
    resumed = fresh()
    resumed.load_state_dict(first.state_dict())

    rest = [example["pixel_values"] for example in resumed]
    assert len(rest) == 4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(rest, expected[2:], strict=True))
    resumed.set_epoch(4)
    following = zip(resumed, fresh(4), strict=True)
    assert all(torch.equal(ours["pixel_values"], theirs["pixel_values"]) for ours, theirs in following)


def test_stream_skips_names_and_under_strict_raises(damaged: Path, caplog: pytest.LogCaptureFixture):
    """Unreadable images of a stream are left out and named, or an error under `strict`."""
    caplog.set_level(logging.WARNING)
    stream = ImageStream(load_images(str(damaged), streaming=True), 32)

    assert len(list(stream)) == 4
    assert {Path(name).name for name in stream.bad_images} == {"3.png", "5.png"}
    with pytest.raises(ValueError, match=r"cats.3\.png"):
        list(ImageStream(load_images(str(damaged), streaming=True), 32, strict=True))
