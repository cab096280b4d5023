"""Data sets of `datasets`, as they come from anywhere, are images to train on once they are wrapped."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from hf_vq.data.images import ImageDataset, ImageStream

from .pictures import encoded, noise


def stored(image: PIL.Image.Image) -> dict[str, Any]:
    """An image as a parquet file holds it."""
    return {"bytes": encoded(image), "path": None}


def raw(column: str = "img", images: list[Any] | None = None) -> datasets.Dataset:
    """A data set whose columns have names of their own; its images are decoded when a row is read."""
    images = images or [stored(noise(40, 36, seed)) for seed in range(4)]
    features = datasets.Features(
        {column: datasets.Image(), "labels": datasets.ClassLabel(names=["a", "b"]), "text": datasets.Value("string")}
    )
    columns = {column: images, "labels": [index % 2 for index in range(len(images))], "text": ["x"] * len(images)}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("format", [None, "torch", "numpy"])
def test_the_columns_of_images_and_labels_are_found(format: str | None) -> None:
    """Whatever they are called, and in whatever format the data set gives its rows."""
    found = ImageDataset(raw().with_format(format), 32)
    expected = ImageDataset([noise(40, 36, seed) for seed in range(4)], 32)

    for index in range(4):
        assert torch.equal(found[index]["pixel_values"], expected[index]["pixel_values"])
        assert found[index]["label"] == index % 2


def test_a_stream_likewise() -> None:
    """An `IterableDataset` gives the same examples."""
    found = list(ImageStream(raw().to_iterable_dataset(), 32))
    expected = ImageDataset(raw(), 32)

    assert [example["label"] for example in found] == [0, 1, 0, 1]
    assert all(torch.equal(found[index]["pixel_values"], expected[index]["pixel_values"]) for index in range(4))


@pytest.mark.parametrize("column", ["image", "img"])
def test_a_damaged_image_is_passed_over(column: str) -> None:
    """It would end a run where `datasets` decodes it."""
    images = [stored(noise(40, 36)), {"bytes": b"no image", "path": None}, stored(noise(40, 36, 1))]
    found = ImageDataset(raw(column, images), 32)

    assert torch.equal(found[1]["pixel_values"], found[2]["pixel_values"])
    assert list(found.bad_images) == ["row 1"]


def test_a_transform_of_ones_own_stays() -> None:
    """Rows that a function makes are taken as they are."""
    black = np.zeros((32, 32, 3), dtype=np.uint8)
    found = ImageDataset(raw().with_transform(lambda rows: {"image": [black] * len(rows["img"])}), 32)

    assert found[0]["pixel_values"].unique().tolist() == [-1.0]


def test_a_choice_that_cannot_be_made_is_told() -> None:
    """Several splits, or several columns of images."""
    splits = datasets.DatasetDict(train=raw(), test=raw())
    two = datasets.concatenate_datasets([raw("one"), raw("other").select_columns(["other"])], axis=1)

    with pytest.raises(ValueError, match=r"splits 'train', 'test'. Choose one: `dataset\['train'\]`"):
        ImageDataset(splits, 32)
    with pytest.raises(ValueError, match="cannot tell which column.*rename it to image.*one, labels, text, other"):
        ImageDataset(two, 32)
    assert ImageDataset(two.rename_column("other", "image"), 32)[0]["label"] == 0
