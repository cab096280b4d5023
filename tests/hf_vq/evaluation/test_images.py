"""Images of an evaluation: batches that no number of processes changes, and ranges of pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest
import torch

from hf_vq import VQImageProcessor
from hf_vq.data.images import ImageDataset
from hf_vq.data.sources import load_images
from hf_vq.evaluation.images import Batch, ImageBatches, describe_preprocessing, resized, to_bytes, to_pil

from ...tiny_tokens import PROCESSOR


def read(images: Any, **settings: Any) -> list[Batch]:
    """All batches of a process."""
    return list(ImageBatches(images, PROCESSOR, **{"batch_size": 4, **settings}))


def same(first: list[Batch], second: list[Batch]) -> bool:
    """Whether two lists of batches are equal, to the bit."""
    return len(first) == len(second) and all(
        a.number == b.number and all(torch.equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))
        for a, b in zip(first, second, strict=True)
    )


def test_batches_do_not_depend_on_the_number_of_processes_or_on_streaming(images: Path) -> None:
    """Three processes read together what one reads, in the same batches, and so does a stream."""
    single = read(load_images(str(images)))
    shared = [read(load_images(str(images)), rank=rank, world_size=3) for rank in range(3)]
    streams = [read(load_images(str(images), streaming=True), rank=rank, world_size=2) for rank in range(2)]

    assert [len(batch.indices) for batch in single] == [4, 4, 3]
    assert torch.cat([batch.labels for batch in single]).tolist() == [0] * 7 + [1] * 4
    assert same(single, [batches[0] for batches in shared])
    assert same(single, sorted((batch for batches in streams for batch in batches), key=lambda batch: batch.number))
    # The pixels are those that a training run would measure.
    expected = torch.stack([ImageDataset(load_images(str(images)), 16)[n]["pixel_values"] for n in range(11)])
    assert torch.equal(torch.cat([batch.pixel_values for batch in single]), expected)


def test_only_the_first_images_are_read_on_demand(images: Path) -> None:
    """max_images cuts within a batch; a stream is read as its batches are used, a batch ahead."""
    assert [len(batch.indices) for batch in read(load_images(str(images)), max_images=6)] == [4, 2]
    seen: list[int] = []

    def rows() -> Any:
        for number, row in enumerate(load_images(str(images))):
            seen.append(number)
            yield row

    features = load_images(str(images)).features
    batches = ImageBatches(datasets.IterableDataset.from_generator(rows, features=features), PROCESSOR, batch_size=2)
    next(iter(batches))
    assert batches.num_batches is None and len(seen) <= 6
    assert ImageBatches(load_images(str(images)), PROCESSOR, batch_size=4, max_images=9, world_size=2).num_batches == 2


def test_unreadable_images_are_skipped_and_counted(tmp_path: Path, images: Path) -> None:
    """One bad file costs one image; a batch of nothing else disappears; strict names the first."""
    for number in range(5):
        PIL.Image.open(images / "cats" / f"{number:02}.png").save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    (tmp_path / "4.png").write_bytes(b"no picture")
    batches = ImageBatches(load_images(str(tmp_path)), PROCESSOR, batch_size=4)

    assert [batch.indices.tolist() for batch in batches] == [[0, 2, 3]]
    assert batches.count() == (3, 2) and list(batches.skipped) == [str(tmp_path / "1.png"), str(tmp_path / "4.png")]
    with pytest.raises(ValueError, match=r"cannot read .*1\.png .*drop strict"):
        read(load_images(str(tmp_path)), strict=True)


def test_pixels_become_the_bytes_of_the_image() -> None:
    """What the processor made of an image is the image again, to the byte; what lies beyond white is white."""
    image = to_pil(torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8))[0]
    signed = PROCESSOR([image], return_tensors="pt").pixel_values

    assert to_pil(to_bytes(signed))[0].tobytes() == image.tobytes()
    assert to_bytes(torch.tensor([-3.0, 1.5])).tolist() == [0, 255]


def test_preprocessing_is_told_in_words() -> None:
    """Resize, filter, crop and channels, also of other sizes and of none."""
    assert describe_preprocessing(VQImageProcessor(image_size=64)) == {
        "resize": "shorter edge to 64",
        "filter": "bicubic, antialiased, of 8-bit pixels (Pillow)",
        "crop": "center, 64 x 64",
        "channels": 3,
    }
    other = VQImageProcessor(size={"height": 20, "width": 30}, do_center_crop=False, resample=2, num_channels=1)
    assert describe_preprocessing(other) == {
        "resize": "20 x 30",
        "filter": "bilinear, antialiased, of 8-bit pixels (Pillow)",
        "crop": "none",
        "channels": 1,
    }
    assert describe_preprocessing(resized(other, 24))["crop"] == "center, 24 x 24"
    assert describe_preprocessing(VQImageProcessor(do_resize=False))["filter"] == "none"
