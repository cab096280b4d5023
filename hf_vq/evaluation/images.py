"""Images for an evaluation: in batches that are the same however many processes share them out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, NamedTuple

import datasets
import PIL.Image
import torch
from accelerate.utils import gather_object

from hf_vq.data.places import AnyDataset
from hf_vq.data.reading import Example, ImageReader, Row, split_rows
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.utils.processes import sum_over_processes


class Batch(NamedTuple):
    """Images that are measured together.

    Attributes:
        number: Of the batch in the data set.
        indices: The images' rows (batch,), int64.
        pixel_values: (batch, channels, height, width), float32 in [-1, 1].
        labels: Class of each, -1 where there is none (batch,), int64.
    """

    number: int
    indices: torch.Tensor
    pixel_values: torch.Tensor
    labels: torch.Tensor


class ImageBatches:
    """Reads a process's batches of a data set, a batch ahead of their use.

    Batch b holds rows b x batch_size and following and belongs to process b % world_size, so that which images go
    through a network together does not depend on the number of processes. The rows of others are not decoded.

    Args:
        images: What `load_images` returned.
        processor: Makes the pixels; its normalization is set aside.
        batch_size: Rows of a batch.
        max_images: Rows to read at most; None for all.
        num_threads: Threads that read images.
        rank: Number of this process.
        world_size: How many there are.
        strict: Whether an unreadable image is an error.

    Attributes:
        num_rows: Rows read so far by this process.
        skipped: Name and reason of each image that this process cannot read.
    """

    def __init__(
        self,
        images: AnyDataset,
        processor: VQImageProcessor,
        *,
        batch_size: int = 64,
        max_images: int | None = None,
        num_threads: int = 4,
        rank: int = 0,
        world_size: int = 1,
        strict: bool = False,
    ) -> None:
        self.images, self.batch_size, self.max_images = images, batch_size, max_images
        self.num_threads, self.rank, self.world_size = num_threads, rank, world_size
        signed = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": 0.5}
        self.processor = VQImageProcessor.from_dict(processor.to_dict() | signed | {"image_std": 0.5})
        self.reader = ImageReader(processor.num_channels, self._preprocess, strict=strict)
        self.num_rows = 0
        self.skipped: dict[str, str] = {}

    @property
    def num_batches(self) -> int | None:
        """Batches of this process; None for a stream, whose end is not known."""
        if not isinstance(self.images, datasets.Dataset):
            return None
        rows = min(len(self.images), self.max_images or len(self.images))
        return len(range(self.rank, math.ceil(rows / self.batch_size), self.world_size))

    def count(self) -> tuple[int, int]:
        """Images read and images skipped so far, over all processes; a collective."""
        rows, skipped = sum_over_processes(torch.tensor([self.num_rows, len(self.skipped)])).tolist()
        return rows - skipped, skipped

    def all_skipped(self) -> list[str]:
        """Row and reason of images that processes skipped, at most a hundred of each process; a collective."""
        return gather_object([f"{name} ({reason})" for name, reason in self.skipped.items()][:100])

    def __iter__(self) -> Iterator[Batch]:
        self.num_rows, self.skipped = 0, {}
        with ThreadPoolExecutor(self.num_threads) as executor:
            examples = self.reader.read_ahead(self._rows(), executor, self.batch_size)
            for number, members in groupby(examples, key=lambda example: example.number // self.batch_size):
                kept = [example for example in members if self._count(example)]
                if kept:
                    yield self._batch(number, kept)

    def _rows(self) -> Iterator[Row]:
        """The rows of this process's batches."""
        end = math.inf if self.max_images is None else self.max_images
        for number, rows in split_rows(self.images, self.batch_size):
            if number * self.batch_size >= end:
                return
            if number % self.world_size == self.rank:
                yield from ((index, row) for index, row in rows if index < end)

    def _preprocess(self, image: PIL.Image.Image, index: int) -> torch.Tensor:
        return self.processor([image], return_tensors="pt").pixel_values[0]

    def _count(self, example: Example) -> bool:
        """Counts a row, and says whether its image can be read."""
        self.num_rows += 1
        if example.content is None:
            self.skipped[example.name] = example.reason
        return example.content is not None

    def _batch(self, number: int, examples: list[Example]) -> Batch:
        shapes = sorted({tuple(example.content.shape[1:]) for example in examples})
        if len(shapes) > 1:
            raise ValueError(
                f"the image processor makes images of different sizes, {shapes[0]} and {shapes[-1]} among them: "
                "turn its center crop on, or give an image_size"
            )
        labels = [-1 if example.label is None else int(example.label) for example in examples]
        return Batch(
            number,
            torch.tensor([example.number for example in examples]),
            torch.stack([example.content for example in examples]),
            torch.tensor(labels),
        )


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] as a picture would store them: clamped, rounded to uint8."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pil(images: torch.Tensor) -> list[PIL.Image.Image]:
    """Pictures of uint8 images (batch, 1 or 3, height, width)."""
    arrays = images.cpu().permute(0, 2, 3, 1).numpy()
    return [PIL.Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def describe_preprocessing(processor: VQImageProcessor) -> dict[str, Any]:
    """What a processor does to images, but for the range of the pixels, in words."""
    fields = processor.to_dict()
    resize, filter_, crop = "none", "none", "none"
    if fields["do_resize"]:
        size = dict(fields["size"])
        if set(size) == {"shortest_edge"}:
            resize = f"shorter edge to {size['shortest_edge']}"
        else:
            resize = " x ".join(str(size[name]) for name in ("height", "width") if name in size) or str(size)
        filter_ = f"{PIL.Image.Resampling(fields['resample']).name.lower()}, antialiased, of 8-bit pixels (Pillow)"
    if fields["do_center_crop"]:
        crop = f"center, {fields['crop_size']['height']} x {fields['crop_size']['width']}"
    return {"resize": resize, "filter": filter_, "crop": crop, "channels": fields["num_channels"]}


def resized(processor: VQImageProcessor, image_size: int) -> VQImageProcessor:
    """The same processor for another size of square images."""
    sides = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    return VQImageProcessor.from_dict(processor.to_dict() | sides | {"do_resize": True, "do_center_crop": True})
