"""Image data sets for training: undecoded images in, ``pixel_values`` out.

`ImageDataset` (map-style) and `ImageStream` (streaming) resize and crop exactly like `VQImageProcessor`, draw their
augmentation from (seed, epoch, index) alone, and go on past files that cannot be read. `load_images` finds the images.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import PIL.ExifTags
import PIL.Image
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.pixel_range_vq import SIGNED, UNIT, check_pixel_range
from hf_vq.utils.text import MAX_NAMES, shorten

logger = logging.getLogger(__name__)

# Byte -> pixel, with the roundings of an image processor: rescale in float64, normalize in float32.
_UNIT_LEVELS = (np.arange(256) * (1 / 255)).astype(np.float32)
_LEVELS = {UNIT: _UNIT_LEVELS, SIGNED: (_UNIT_LEVELS - np.float32(0.5)) / np.float32(0.5)}
_PROCESSOR = VQImageProcessor()
_ORIENTATION = PIL.ExifTags.Base.Orientation
_UNSEEN, _GOOD, _ENLARGED, _BAD = range(4)


def convert_image(image: PIL.Image.Image, num_channels: int = 3) -> PIL.Image.Image:
    """Turns an image of any Pillow mode into upright 8-bit RGB or grey, the way `VQImageProcessor` does.

    Args:
        image: Transparency is laid over white, 16-bit levels are scaled, the EXIF orientation is applied.
        num_channels: 3 or 1.

    Returns:
        An image of mode "RGB" (3 channels) or "L" (1).

    Raises:
        ValueError: Levels outside the mode's range, such as floats above 1.
    """
    if num_channels not in (1, 3):
        raise ValueError(f"num_channels must be 1 or 3, got {num_channels}")
    mode = "RGB" if num_channels == 3 else "L"
    if image.mode == mode and "transparency" not in image.info and _ORIENTATION not in image.getexif():
        return image  # the usual case, and conversion costs as much as decoding a small image
    array = _PROCESSOR.process_image(image, do_convert_rgb=True, num_channels=num_channels)
    return PIL.Image.fromarray(array[0] if num_channels == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def image_to_tensor(
    image: PIL.Image.Image,
    image_size: int,
    *,
    position: tuple[float, float] | None = None,
    flip: bool = False,
    pixel_range: Sequence[float] = SIGNED,
) -> torch.Tensor:
    """Resizes the shorter edge to ``image_size`` (bicubic, antialiased), crops a square and scales to ``pixel_range``.

    Smaller images are enlarged. Without ``position`` and ``flip`` this is `VQImageProcessor`, bit for bit.

    Args:
        image: Of mode "RGB" or "L", see `convert_image`.
        image_size: Side of the square in pixels.
        position: Where the crop lies, top and left, each in [0, 1); the center by default.
        flip: Whether to mirror left and right.
        pixel_range: Of the result: [-1, 1] or [0, 1].

    Returns:
        Float32 tensor of shape (3 or 1, image_size, image_size) in ``pixel_range``.

    Raises:
        ValueError: Another range.
    """
    check_pixel_range(pixel_range)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short != image_size:
        longer = int(image_size * long / short)
        size = (image_size, longer) if width <= height else (longer, image_size)
        image = image.resize(size, PIL.Image.Resampling.BICUBIC)
    spare_height, spare_width = image.height - image_size, image.width - image_size
    if position is None:
        top, left = spare_height // 2, spare_width // 2
    else:
        top, left = int(position[0] * (spare_height + 1)), int(position[1] * (spare_width + 1))
    pixels = np.asarray(image)[top : top + image_size, left : left + image_size]
    pixels = pixels[:, ::-1] if flip else pixels
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(np.ascontiguousarray(_LEVELS[tuple(pixel_range)][pixels].transpose(2, 0, 1)))


def decode_image(row: Any, num_channels: int = 3) -> PIL.Image.Image:
    """Reads the image of a row and converts it, see `convert_image`. Raises whatever Pillow raises.

    Args:
        row: A dict with ``image``, or what stands there: ``{"bytes", "path"}``, a path, bytes, an array, an image.
        num_channels: 3 or 1.
    """
    value = row["image"] if isinstance(row, dict) and "image" in row else row
    if value is None:
        raise ValueError("the row holds no image")
    if isinstance(value, np.ndarray):
        return convert_image(PIL.Image.fromarray(value), num_channels)
    if isinstance(value, PIL.Image.Image):
        return convert_image(value, num_channels)
    if isinstance(value, (str, os.PathLike)):
        value = {"path": os.fspath(value), "bytes": None}
    elif isinstance(value, bytes):
        value = {"path": None, "bytes": value}
    return convert_image(datasets.Image().decode_example(value), num_channels)


class _Preprocessor:
    """What `ImageDataset` and `ImageStream` share: from a row to an example."""

    def __init__(
        self,
        image_size: int,
        num_channels: int,
        pixel_range: Sequence[float],
        random_crop: bool,
        random_flip: bool,
        seed: int,
    ):
        if image_size < 1:
            raise ValueError(f"image_size must be positive, got {image_size}")
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels must be 1 or 3, got {num_channels}")
        check_pixel_range(pixel_range)
        self.image_size, self.num_channels, self.pixel_range = image_size, num_channels, list(pixel_range)
        self.random_crop, self.random_flip, self.seed = random_crop, random_flip, seed

    def example(self, row: Any, image: PIL.Image.Image, key: tuple[int, ...]) -> dict[str, Any]:
        """The example of a decoded row; ``key`` decides the augmentation."""
        position, flip = None, False
        if self.random_crop or self.random_flip:
            top, left, side = np.random.default_rng((self.seed, *key)).random(3)
            position = (top, left) if self.random_crop else None
            flip = self.random_flip and side < 0.5
        pixel_values = image_to_tensor(
            image, self.image_size, position=position, flip=flip, pixel_range=self.pixel_range
        )
        label = row.get("label") if isinstance(row, dict) else None
        return {"pixel_values": pixel_values} | ({} if label is None else {"label": label})


def _name(row: Any, index: int) -> str:
    value = row["image"] if isinstance(row, dict) and "image" in row else row
    path = value.get("path") if isinstance(value, dict) else value if isinstance(value, (str, os.PathLike)) else None
    if path is None:
        return f"row {index}"
    # Rows of parquet files carry bare file names, which may repeat.
    return str(path) if os.path.isabs(path) else f"{path} (row {index})"


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
        self.source = source
        self.strict = strict
        self.pixel_range = list(pixel_range)
        self.preprocessor = _Preprocessor(image_size, num_channels, pixel_range, random_crop, random_flip, seed)
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
            found = self._read((index + offset) % count)
            if found is not None:
                return self.preprocessor.example(*found, key=(int(self._epoch), index))
        raise ValueError(f"none of the {count} images can be read: {_reasons(self.bad_images)}")

    def _read(self, index: int, warn: bool = True) -> tuple[Any, PIL.Image.Image] | None:
        """Row and decoded image, or None for a bad one, which is recorded and told once."""
        if self._status[index] == _BAD and not self.strict:
            return None
        row = self.source[index]
        try:
            image = decode_image(row, self.preprocessor.num_channels)
        except Exception as error:  # Pillow's plugins raise anything from OSError to struct.error
            name, reason = _name(row, index), error_reason(error)
            if self.strict:
                raise ValueError(f"cannot read image {name}: {reason}. Repair or remove it, or drop strict") from error
            self._status[index] = _BAD
            bad = int((self._status == _BAD).sum())
            if warn and bad <= MAX_NAMES:
                rest = "; further ones are only listed in bad_images" if bad == MAX_NAMES else ""
                logger.warning("skipped unreadable image %s: %s (%d so far%s)", name, reason, bad, rest)
            return None
        if self._status[index] == _UNSEEN:
            small = min(image.size) < self.preprocessor.image_size
            if small and warn and not (self._status == _ENLARGED).any():
                size = f"{image.width}x{image.height}, image_size is {self.preprocessor.image_size}"
                logger.warning("%s is enlarged (%s), others may be: see num_enlarged", _name(row, index), size)
            self._status[index] = _ENLARGED if small else _GOOD
        return row, image

    @property
    def bad_images(self) -> dict[str, str]:
        """Name and reason of each unreadable image met so far, by any worker."""
        found = {}
        for index in torch.nonzero(self._status == _BAD).flatten().tolist():
            row = self.source[index]
            try:
                decode_image(row, self.preprocessor.num_channels)
            except Exception as error:
                found[_name(row, index)] = error_reason(error)
        return found

    @property
    def num_enlarged(self) -> int:
        """How many of the images met so far are smaller than ``image_size``."""
        return int((self._status == _ENLARGED).sum())

    def find_bad_images(self) -> dict[str, str]:
        """Decodes every image once, so that problems show before a run and not hours into it.

        Returns:
            Name and reason of each unreadable image; one warning gives their count and names, another the number of
            images that will be enlarged.

        Raises:
            ValueError: Unreadable image, under ``strict``; or no image can be read.
        """
        for index in range(len(self)):
            self._read(index, warn=False)
        bad, count = self.bad_images, len(self)
        if len(bad) == count:
            raise ValueError(f"none of the {count} images can be read: {_reasons(bad)}")
        if bad:
            logger.warning("skipping %d of %d images that cannot be read: %s", len(bad), count, _reasons(bad))
        if self.num_enlarged:
            size = self.preprocessor.image_size
            logger.warning("%d of %d images are smaller than %d pixels: enlarged", self.num_enlarged, count, size)
        return bad


def error_reason(error: Exception) -> str:
    """Why an image cannot be read, the same in every run."""
    # Pillow puts the address of its buffer in the message, which differs from run to run.
    text = str(error).split(" <_io")[0]
    return text or type(error).__name__


def _reasons(bad: dict[str, str]) -> str:
    return shorten([f"{name} ({reason})" for name, reason in bad.items()])


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
        self.source, self.strict, self.rank, self.pixel_range = source, strict, rank, list(pixel_range)
        self.preprocessor = _Preprocessor(image_size, num_channels, pixel_range, random_crop, random_flip, seed)
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

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        epoch = int(self.source.epoch)
        self._position = self._start[1] if self._start is not None and self._start[0] == epoch else 0
        good = self._position
        for row in self.source:
            index = self._position
            self._position += 1
            try:
                image = decode_image(row, self.preprocessor.num_channels)
            except Exception as error:  # Pillow's plugins raise anything from OSError to struct.error
                name, reason = _name(row, index), error_reason(error)
                if self.strict:
                    raise ValueError(
                        f"cannot read image {name}: {reason}. Repair or remove it, or drop strict"
                    ) from error
                if name not in self.bad_images:
                    self.bad_images[name] = reason
                    logger.warning("skipped unreadable image %s: %s (%d so far)", name, reason, len(self.bad_images))
                continue
            good += 1
            key = (epoch, self.rank, 0 if worker is None else worker.id, index)
            yield self.preprocessor.example(row, image, key)
        if not good and self.bad_images and worker is None:
            raise ValueError(f"none of the {self._position} images can be read: {_reasons(self.bad_images)}")
