"""Data without pixels are refused before the run begins, with the wrapper that makes pixels of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from hf_vq import TokenizerTrainer, TokenizerTrainingArguments, VQConfig, VQModel
from hf_vq.data import ImageDataset, ImageStream

IMAGES = [Image.new("RGB", (40, 40), (number, 0, 0)) for number in range(8)]
RAW = datasets.Dataset.from_dict({"image": IMAGES}, features=datasets.Features({"image": datasets.Image()}))


def make_trainer(folder: Path, *data: Any) -> TokenizerTrainer:
    """A trainer of a tiny model whose pixels are in [0, 1]."""
    config = VQConfig(
        architecture="sqvae", image_size=32, base_channels=8, embed_dim=4, num_codes=16, pixel_range=[0.0, 1.0]
    )
    args = TokenizerTrainingArguments(output_dir=str(folder), max_steps=1, train_batch_size=2, disable_tqdm=True)
    return TokenizerTrainer(VQModel(config), args, *data)


@pytest.mark.parametrize(
    ("data", "found", "wrapper"),
    [
        (RAW, "gives dicts of 'image'", "ImageDataset(dataset"),
        (RAW.with_format("torch"), "gives dicts of 'image'", "ImageDataset(dataset"),
        (RAW.to_iterable_dataset(), "gives dicts of 'image'", "ImageStream(dataset"),
        (datasets.DatasetDict(train=RAW), "is a dict of 'train'", "ImageDataset(dataset['train']"),
        (IMAGES, "gives items of type Image", "ImageDataset(dataset"),
        (torch.utils.data.TensorDataset(torch.rand(8, 3, 32, 32)), "gives items of type tuple", "ImageDataset("),
    ],
    ids=["datasets", "torch", "stream", "splits", "pillow", "tensors"],
)
def test_data_without_pixels_are_told_what_to_wrap_them_in(
    data: Any, found: str, wrapper: str, tmp_path: Path
) -> None:
    """To train on and to measure on; the folder of the run is not touched."""
    pixels = [{"pixel_values": torch.rand(3, 32, 32)}]
    for which, sets in (("training", [data]), ("held-out", [pixels, data])):
        with pytest.raises(ValueError, match="takes dicts with `pixel_values`") as caught:
            make_trainer(tmp_path / "out", *sets)
        assert f"The {which} set {found}, but" in str(caught.value)
        assert f"`hf_vq.data.{wrapper}" in str(caught.value)
        assert "32, pixel_range=model.config.pixel_range)`" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("streamed", [False, True])
def test_what_the_message_advises_trains(streamed: bool, tmp_path: Path) -> None:
    """The wrapped data set, and a data set with a transform of one's own."""
    own = RAW.with_transform(lambda rows: {"pixel_values": [torch.rand(3, 32, 32)] * len(rows["image"])})
    data: Any = own
    if streamed:
        data = ImageStream(RAW.to_iterable_dataset(), 32, pixel_range=[0.0, 1.0])
    trainer = make_trainer(tmp_path / "out", data, ImageDataset(RAW, 32, pixel_range=[0.0, 1.0]))

    metrics = trainer.train()
    trainer.close()

    assert metrics["num_images"] == 8
    assert (tmp_path / "out" / "final" / "model.safetensors").is_file()


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """A stream of one's own, which torch gives a `__getitem__` but no length."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from [{"pixel_values": torch.rand(3, 32, 32)}] * 4


class Rows:
    """Rows by index, with no length."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.rand(3, 32, 32)}


def test_a_stream_of_ones_own_trains_and_is_measured_on(tmp_path: Path) -> None:
    """It is not asked for its length, nor for its first item, which would be gone."""
    trainer = make_trainer(tmp_path / "out", Stream(), Stream())

    metrics = trainer.train()
    trainer.close()

    assert metrics["num_images"] == 4


def test_rows_without_a_length_are_told(tmp_path: Path) -> None:
    """Which rows a step takes can't be drawn without knowing how many there are."""
    with pytest.raises(ValueError, match="The training set has no `__len__`"):
        make_trainer(tmp_path / "out", Rows())
    assert not (tmp_path / "out").exists()
