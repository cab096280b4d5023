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
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from hf_vq.data.held_out import HeldOut
from hf_vq.data.reading import Example, ImageReader, Preprocessor, with_reasons
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
        source: What `load_images` returns, or any sequence of rows (dicts with ``image``), Pillow images or paths.
        image_size: Side of the square images.
        num_channels: 3 or 1.
        pixel_range: [-1, 1] or [0, 1], as the model's configuration says.
        random_crop: Whether to crop at random along the longer edge; else the center.
        random_flip: Whether to mirror every other image. Both depend on ``seed``, epoch and index only.
        seed: Seed of the augmentation.
        strict: Whether an unreadable image is an error.
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
    ):
        if len(source) == 0:
            raise ValueError("no images found: the data set is empty")
        self.source, self.pixel_range = source, list(pixel_range)
        self.held_out: HeldOut | None = None  # says which images these are, if they were drawn from a split
        self.reader = ImageReader(num_channels, strict=strict)
        self.preprocessor = Preprocessor(image_size, self.pixel_range, random_crop, random_flip, seed)
        # Shared memory, so that the main process learns what workers met, and lasting workers hear of a new epoch.
        self._status = torch.zeros(len(source), dtype=torch.uint8).share_memory_()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

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
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"index {index} is out of range for {count} images")
        index = int(index) % count
        for offset in range(count):
            found = self._read((index + offset) % count, index)
            if found is not None:
                return _item(found)
        raise ValueError(f"none of the {count} images can be read: {with_reasons(self.bad_images)}")

    def readable_item(self, index: int) -> dict[str, Any] | None:
        """One example; None if its image cannot be read, in place of which `dataset[index]` gives the next one."""
        found = self._read(index, index)
        return None if found is None else _item(found)

    def bad_rows(self) -> torch.Tensor:
        """Which images are known to be unreadable, bool (number of images,)."""
        return self._status == _BAD

    def _read(self, index: int, place: int, warn: bool = True) -> Example | None:
        """The pixels of a row at a place of the epoch, or None for a bad image, which is recorded and told once."""
        if self._status[index] == _BAD:
            return None
        size: tuple[int, int] | None = None

        def prepare(image: PIL.Image.Image, _: int) -> torch.Tensor:
            nonlocal size
            size = image.size
            return self._pixels(image, place)

        example = self.reader.read(index, self.source[index], prepare)
        if example.content is None:
            self._status[index] = _BAD
            bad = int((self._status == _BAD).sum())
            if warn and bad <= MAX_NAMES:
                rest = "; further ones are only listed in bad_images" if bad == MAX_NAMES else ""
                logger.warning(
                    "skipped unreadable image %s: %s (%d so far%s)", example.name, example.reason, bad, rest
                )
            return None
        if self._status[index] == _UNSEEN and size is not None:
            (width, height), image_size = size, self.preprocessor.image_size
            small = min(width, height) < image_size
            if small and warn and not (self._status == _ENLARGED).any():
                text = f"{width}x{height}, image_size is {image_size}"
                logger.warning("%s is enlarged (%s), others may be: see num_enlarged", example.name, text)
            self._status[index] = _ENLARGED if small else _GOOD
        return example

    def _pixels(self, image: PIL.Image.Image, place: int) -> torch.Tensor:
        return self.preprocessor(image, (int(self._epoch), place))

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
            self._read(index, index, warn=False)
        bad, count = self.bad_images, len(self)
        if len(bad) == count:
            raise ValueError(f"none of the {count} images can be read: {with_reasons(bad)}")
        if bad:
            logger.warning("skipping %d of %d images that cannot be read: %s", len(bad), count, with_reasons(bad))
        if self.num_enlarged:
            size = self.preprocessor.image_size
            logger.warning("%d of %d images are smaller than %d pixels: enlarged", self.num_enlarged, count, size)
        return bad


class ImageStream(IterableDataset):
    """Streaming image data set: examples as in `ImageDataset`, for data that do not fit.

    Unreadable images are skipped, named in a warning and in `bad_images` (of the process that reads them).
    `state_dict` holds the position; an unshuffled stream resumes exactly there, a shuffled one loses what its buffer
    held. A `DataLoader` with workers keeps the position in them.
    Workers of a `DataLoader` share the files out among them, so a source of fewer files leaves some idle.

    Args:
        source: What ``load_images(..., streaming=True)`` returns.
        image_size: Side of the square images.
        num_channels: 3 or 1.
        pixel_range: [-1, 1] or [0, 1], as the model's configuration says.
        random_crop: Whether to crop at random along the longer edge; else the center.
        random_flip: Whether to mirror every other image.
        seed: Seed of shuffling and augmentation; the same on all ranks.
        strict: Whether an unreadable image is an error.
        shuffle_buffer: Images held for shuffling; 0 keeps the order.
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
        shuffle_buffer: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if shuffle_buffer:
            source = source.shuffle(seed=seed, buffer_size=shuffle_buffer)
        if world_size > 1:
            source = split_dataset_by_node(source, rank, world_size)
        self.source, self.rank, self.pixel_range = source, rank, list(pixel_range)
        self.reader = ImageReader(num_channels, strict=strict)
        self.preprocessor = Preprocessor(image_size, self.pixel_range, random_crop, random_flip, seed)
        self.bad_images: dict[str, str] = {}
        self._position = 0
        self._start: tuple[int, int] | None = None  # epoch and position of a loaded state

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentation of an epoch; call it before the epoch's iterator is made."""
        self.source.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, after the last example given."""
        return {"source": self.source.state_dict(), "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the iterator of the state's epoch start at its position."""
        self.source.load_state_dict(state["source"])
        self._start = (state["source"]["epoch"], state["position"])

    def _pixels(self, image: PIL.Image.Image, place: int, *, key: tuple[int, ...]) -> torch.Tensor:
        return self.preprocessor(image, key)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        epoch = int(self.source.epoch)
        self._position = self._start[1] if self._start is not None and self._start[0] == epoch else 0
        good = self._position
        for row in self.source:
            index = self._position
            self._position += 1
            key = (epoch, self.rank, 0 if worker is None else worker.id, index)
            example = self.reader.read(index, row, partial(self._pixels, key=key))
            if example.content is None:
                name, reason = example.name, example.reason
                if name not in self.bad_images:
                    self.bad_images[name] = reason
                    logger.warning("skipped unreadable image %s: %s (%d so far)", name, reason, len(self.bad_images))
                continue
            good += 1
            yield _item(example)
        if not good and self.bad_images and worker is None:
            raise ValueError(f"none of the {self._position} images can be read: {with_reasons(self.bad_images)}")


def _item(example: Example) -> dict[str, Any]:
    """What a data set gives of an example: its pixels, and its label if it has one."""
    label = {} if example.label is None else {"label": example.label}
    return {"pixel_values": example.content, **label}
