"""Image data sets for training: their augmentation, and what happens to files that cannot be read."""

import io
import logging
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from hf_vq.data import reading
from hf_vq.data.images import ImageDataset, ImageStream
from hf_vq.data.reading import image_to_tensor
from hf_vq.data.sources import load_images

from .pictures import noise


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

    with pytest.raises(ValueError, match=r"cannot read .*cats.3\.png.*truncated.*drop strict"):
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


@pytest.mark.parametrize("error", [OverflowError, MemoryError, PIL.Image.DecompressionBombError, RuntimeError])
def test_whatever_preprocessing_raises_makes_an_image_unreadable(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
):
    """An image that decodes but cannot be resized is found by the check pass, and left out in training."""
    resize = PIL.Image.Image.resize

    def fails(self: PIL.Image.Image, *args: object, **kwargs: object) -> PIL.Image.Image:
        if self.size == (99, 98):
            raise error("too much")
        return resize(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(PIL.Image.Image, "resize", fails)
    noise(99, 98).save(folder / "cats" / "3.png")
    dataset = ImageDataset(load_images(str(folder)), 32)

    assert list(dataset.find_bad_images().values()) == ["too much"]
    assert torch.equal(dataset[1]["pixel_values"], dataset[2]["pixel_values"])
    stream = ImageStream(load_images(str(folder), streaming=True), 32)
    assert len(list(stream)) == 5 and list(stream.bad_images.values()) == ["too much"]
    with pytest.raises(ValueError, match="3.png .too much"):
        ImageDataset(load_images(str(folder)), 32, strict=True)[1]


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


@pytest.mark.parametrize(
    ("sides", "decoded"), [((1200, 1000), (150, 125)), ((260, 250), (130, 125)), ((240, 100), (240, 100))]
)
def test_large_jpegs_are_decoded_smaller_where_that_is_asked_for(
    sides: tuple[int, int], decoded: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to twice the size of the training images; their pixels stay close to those of the whole image."""
    file = io.BytesIO()
    sizes: list[tuple[int, int]] = []
    noise(6, 5).resize(sides, PIL.Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    rows = [{"image": {"bytes": file.getvalue(), "path": None}}]

    def convert(image: PIL.Image.Image, _: int) -> PIL.Image.Image:
        sizes.append(image.size)
        return image

    monkeypatch.setattr(reading, "convert_image", convert)

    whole, fast = (ImageDataset(rows, 60, fast_jpegs=fast)[0]["pixel_values"] for fast in (False, True))
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    streamed = next(iter(ImageStream(stream, 60, fast_jpegs=True)))["pixel_values"]

    assert sizes == [sides, decoded, decoded]
    assert torch.equal(fast, streamed)
    assert (fast - whole).abs().mean() * 127.5 < 2 and (decoded == sides) == torch.equal(fast, whole)
