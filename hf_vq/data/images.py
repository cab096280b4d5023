"""Image data sets for training: undecoded images in, ``pixel_values`` out.

`ImageDataset` (map-style) and `ImageStream` (streaming) resize and crop exactly like `VQImageProcessor`, draw their
augmentation from (seed, epoch, index) alone, and go on past files that cannot be read. `load_images` finds the images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import datasets
import PIL.Image
import torch
from torch.utils.data import Dataset, get_worker_info

from hf_vq.data.held_out import HeldOut
from hf_vq.data.reading import Example, ImageReader, Preprocessor, with_reasons
from hf_vq.data.sources import standard_columns
from hf_vq.data.streams import PartedStream, StreamRow
from hf_vq.modeling.pixel_range_vq import SIGNED
from hf_vq.utils.text import MAX_NAMES

logger = logging.getLogger(__name__)

_UNSEEN, _GOOD, _ENLARGED, _BAD = range(4)


class ImageDataset(Dataset):
    """Map-style image data set.

    Each item is a dict with ``pixel_values``, float32 of shape (num_channels, image_size, image_size) in
    ``pixel_range``, and ``label`` where the source has one. Images smaller than ``image_size`` are enlarged, with one
    warning.

    An image that cannot be read is replaced by the next one that can; it is named in a warning and in `bad_images`.
    What workers of a `DataLoader` find is seen here too.

    Args:
        source: What `load_images` returns, a `datasets.Dataset` with a column of images, or any sequence of rows
            (dicts with ``image``), Pillow images or paths.
        image_size: Side of the square images.
        num_channels: 3 or 1.
        pixel_range: [-1, 1] or [0, 1], as the model's configuration says.
        random_crop: Whether to crop at random along the longer edge; else the center.
        random_flip: Whether to mirror every other image. Both depend on ``seed``, epoch and index only.
        seed: Seed of the augmentation.
        strict: Whether an unreadable image is an error.
        fast_jpegs: Whether to decode large JPEGs at 1/2, 1/4 or 1/8 of their size, with at least twice ``image_size``
            pixels left along the shorter edge. Their pixels differ by a level or two on average.
    """

    def __init__(
        self,
        source: Any,
        image_size: int,
        *,
        num_channels: int = 3,
        pixel_range: Sequence[float] = SIGNED,
        random_crop: bool = False,
        random_flip: bool = False,
        seed: int = 0,
        strict: bool = False,
        fast_jpegs: bool = False,
    ):
        source = _with_undecoded_images(source)
        if len(source) == 0:
            raise ValueError("no images found: the data set is empty")
        self.source, self.pixel_range = source, list(pixel_range)
        self.held_out: HeldOut | None = None  # says which images these are, if they were drawn from a split
        self.reader = ImageReader(num_channels, strict=strict, shortest=2 * image_size if fast_jpegs else None)
        self.preprocessor = Preprocessor(image_size, self.pixel_range, random_crop, random_flip, seed)
        # Shared memory, so that the main process learns what workers met, and lasting workers hear of a new epoch.
        self._status = torch.zeros(len(source), dtype=torch.uint8).share_memory_()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        # How many are bad and enlarged. Workers may miscount by one another: these are for warnings alone.
        self._counts = torch.zeros(4, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the augmentation of an epoch; call it before the epoch's iterator is made."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example.

        Raises:
            IndexError: Index out of range.
            ValueError: Unreadable image, under ``strict``; or no image of the data set can be read.
        """
        return self.items_of_epoch(int(self._epoch), [index])[0]

    def items_of_epoch(self, epoch: int, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Examples as an epoch augments them, whatever `set_epoch` said; errors are those of `dataset[index]`."""
        return [self._item_of_epoch(epoch, index) for index in indices]

    def _item_of_epoch(self, epoch: int, index: int) -> dict[str, Any]:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"index {index} is out of range for {count} images")
        index = int(index) % count
        for offset in range(count):
            found = self._read((index + offset) % count, (epoch, index))
            if found is not None:
                return _item(found)
        raise ValueError(f"none of the {count} images can be read: {with_reasons(self.bad_images)}")

    def readable_item(self, index: int) -> dict[str, Any] | None:
        """One example; None if its image cannot be read, in place of which `dataset[index]` gives the next one."""
        found = self._read(index, (int(self._epoch), index))
        return None if found is None else _item(found)

    def bad_rows(self) -> torch.Tensor:
        """Which images are known to be unreadable, bool (number of images,)."""
        return self._status == _BAD

    def _read(self, index: int, place: tuple[int, int], warn: bool = True) -> Example | None:
        """The pixels of a row at a place of an epoch, or None for a bad image, which is recorded and told once."""
        if self._status[index] == _BAD:
            return None
        size: tuple[int, int] | None = None

        def prepare(image: PIL.Image.Image, _: int) -> torch.Tensor:
            nonlocal size
            size = image.size
            return self.preprocessor(image, place)

        example = self.reader.read(index, self.source[index], prepare)
        if example.content is None:
            bad = self._met(index, _BAD)
            if warn and bad <= MAX_NAMES:
                rest = "; further ones are only listed in bad_images" if bad == MAX_NAMES else ""
                logger.warning(
                    "skipped unreadable image %s: %s (%d so far%s)", example.name, example.reason, bad, rest
                )
            return None
        if self._status[index] == _UNSEEN and size is not None:
            (width, height), image_size = size, self.preprocessor.image_size
            small = min(width, height) < image_size
            if self._met(index, _ENLARGED if small else _GOOD) == 1 and small and warn:
                text = f"{width}x{height}, image_size is {image_size}"
                logger.warning("%s is enlarged (%s), others may be: see num_enlarged", example.name, text)
        return example

    def _met(self, index: int, status: int) -> int:
        """Records the status of an image, and returns how many have it; without a look at all the others."""
        self._status[index] = status
        self._counts[status] += 1
        return int(self._counts[status])

    def _pixels(self, image: PIL.Image.Image, index: int) -> torch.Tensor:
        return self.preprocessor(image, (int(self._epoch), index))

    @property
    def bad_images(self) -> dict[str, str]:
        """Name and reason of each unreadable image met so far, by any worker."""
        bad = torch.nonzero(self._status == _BAD).flatten().tolist()
        examples = [self.reader.read(index, self.source[index], self._pixels) for index in bad]
        return {example.name: example.reason for example in examples if example.content is None}

    @property
    def num_enlarged(self) -> int:
        """How many of the images met so far are smaller than ``image_size``."""
        return int((self._status == _ENLARGED).sum())

    def find_bad_images(self) -> dict[str, str]:
        """Makes the pixels of every image once, so that problems show before a run and not hours into it.

        Returns:
            Name and reason of each unreadable image; one warning gives their count and names, another the number of
            images that will be enlarged.

        Raises:
            ValueError: Unreadable image, under ``strict``; or no image can be read.
        """
        for index in range(len(self)):
            self._read(index, (0, index), warn=False)
        bad, count = self.bad_images, len(self)
        if len(bad) == count:
            raise ValueError(f"none of the {count} images can be read: {with_reasons(bad)}")
        if bad:
            logger.warning("skipping %d of %d images that cannot be read: %s", len(bad), count, with_reasons(bad))
        if self.num_enlarged:
            size = self.preprocessor.image_size
            logger.warning("%d of %d images are smaller than %d pixels: enlarged", self.num_enlarged, count, size)
        return bad


class ImageStream(PartedStream):
    """Streaming image data set: examples as in `ImageDataset`, for data that do not fit.

    The files of the stream (of parquet files the row groups, where `datasets` can tell them apart) are shared out
    among ``world_size`` processes and the workers of their loaders, see `Reading`; none reads the files of another.
    It iterates and resumes as a `PartedStream`. Unreadable images are skipped, named in a warning and in `bad_images`
    (of the process that reads them).

    Args:
        source: What ``load_images(..., streaming=True)`` returns, or a `datasets.IterableDataset` with images.
        image_size: Side of the square images.
        num_channels: 3 or 1.
        pixel_range: [-1, 1] or [0, 1], as the model's configuration says.
        random_crop: Whether to crop at random along the longer edge; else the center.
        random_flip: Whether to mirror every other image.
        seed: Seed of shuffling and augmentation; the same on all ranks.
        strict: Whether an unreadable image is an error.
        fast_jpegs: As of `ImageDataset`.
        shuffle_buffer: Images that are shuffled together, beside the order of the files; 0 keeps the order.
        rank: Number of this process; each of ``world_size`` processes sees its own part of the data.
        world_size: Number of processes.
    """

    def __init__(
        self,
        source: datasets.IterableDataset,
        image_size: int,
        *,
        num_channels: int = 3,
        pixel_range: Sequence[float] = SIGNED,
        random_crop: bool = False,
        random_flip: bool = False,
        seed: int = 0,
        strict: bool = False,
        fast_jpegs: bool = False,
        shuffle_buffer: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.pixel_range = list(pixel_range)
        self.reader = ImageReader(num_channels, strict=strict, shortest=2 * image_size if fast_jpegs else None)
        self.preprocessor = Preprocessor(image_size, self.pixel_range, random_crop, random_flip, seed)
        self.bad_images: dict[str, str] = {}
        super().__init__(_with_undecoded_images(source), seed, shuffle_buffer, rank, world_size)

    def _pixels(self, image: PIL.Image.Image, _: int, *, key: tuple[int, ...]) -> torch.Tensor:
        return self.preprocessor(image, key)

    def _examples(self, rows: Iterator[StreamRow]) -> Iterator[dict[str, Any]]:
        good, first, met = 0, None, 0
        for found in rows:
            first, met = found.epoch if first is None else first, met + 1
            key = (found.epoch, found.part, found.number)
            index = found.number + self.parts.first_row(found.part)
            example = self.reader.read(index, found.row, partial(self._pixels, key=key))
            if example.content is not None:
                good += 1
                yield _item(example)
                continue
            name, reason = example.name, example.reason
            if name not in self.bad_images:
                self.bad_images[name] = reason
                logger.warning("skipped unreadable image %s: %s (%d so far)", name, reason, len(self.bad_images))
            if not good and found.epoch > first + 1:  # without end
                break
        if not good and self.bad_images and get_worker_info() is None:
            raise ValueError(f"none of the {met} images can be read: {with_reasons(self.bad_images)}")


def _with_undecoded_images(source: Any) -> Any:
    """A data set of `datasets` as `load_images` gives it, so that its images are met, good or bad, by the reader."""
    if isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        splits = list(source)
        raise ValueError(f"This data set has the splits {str(splits)[1:-1]}. Choose one: `dataset[{splits[0]!r}]`.")
    if not isinstance(source, (datasets.Dataset, datasets.IterableDataset)) or source.features is None:
        return source
    image = source.features.get("image")
    is_ready = isinstance(image, datasets.Image) and not image.decode
    has_transform = isinstance(source, datasets.Dataset) and source.format["type"] == "custom"
    return source if is_ready or has_transform else standard_columns(source.with_format(None), None, "the data set")


def _item(example: Example) -> dict[str, Any]:
    """What a data set gives of an example: its pixels, and its label if it has one."""
    label = {} if example.label is None else {"label": example.label}
    return {"pixel_values": example.content, **label}
