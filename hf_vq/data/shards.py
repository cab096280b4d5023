"""From rows of images to a parquet file of tokens, the same bytes in every run with the same settings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_vq.data.manifest import DamagedShardError
from hf_vq.data.reading import ImageReader, Row, row_path
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.utils.files import atomic_file, writing
from hf_vq.utils.hashes import json_sha256
from hf_vq.utils.text import first_line

_INFO_KEY = b"hf_vq"  # of the parquet file's metadata


@dataclass(frozen=True)
class Views:
    """The views of an image that are tokenized: the whole, seeded crops, and the mirror image of each.

    Args:
        num_crops: Number of crops: squares of the image's pixels at random places.
        crop_scale: Their side in parts of the image's shorter side, in (0, 1].
        flip: Whether to add mirror images.
        seed: With the image's number it decides where the crops lie.
    """

    num_crops: int = 0
    crop_scale: float = 0.9
    flip: bool = False
    seed: int = 0

    @property
    def names(self) -> list[str]:
        """The names of the views, in order; the first is the image as its processor takes it."""
        names = ["center", *(f"crop-{number + 1}" for number in range(self.num_crops))]
        return [name + suffix for name in names for suffix in (("", "-flip") if self.flip else ("",))]

    def __call__(self, image: PIL.Image.Image, index: int, processor: VQImageProcessor) -> torch.Tensor:
        """The pixels of the views.

        Args:
            image: Of mode "RGB" or "L".
            index: Its number in the split.
            processor: The tokenizer's.

        Returns:
            `pixel_values`, float32 of shape (views, channels, height, width).
        """
        images, side = [image], max(1, round(self.crop_scale * min(image.size)))
        generator = np.random.default_rng((self.seed, index))
        for _ in range(self.num_crops):
            left, top = (int(generator.integers(length - side + 1)) for length in image.size)
            images.append(image.crop((left, top, left + side, top + side)))
        pixel_values = processor(images, return_tensors="pt").pixel_values
        return torch.stack([pixel_values, pixel_values.flip(-1)], 1).flatten(0, 1) if self.flip else pixel_values


class ShardInfo(NamedTuple):
    """What a shard's file tells about itself.

    Attributes:
        num_images: Rows of the image data set that it covers.
        num_rows: Rows that it has: the views of those images that can be read.
        skipped: Key and reason of each that cannot.
        settings: Hash of the settings that it was made with.
    """

    num_images: int
    num_rows: int
    skipped: dict[str, str]
    settings: str


def read_shard_info(path: Path) -> ShardInfo:
    """Reads it from the end of the file; a file that is no shard was made with the settings "".

    Raises:
        DamagedShardError: It cannot be read, or does not say what was written.
    """
    try:
        metadata = pq.read_metadata(path)
        info = json.loads((metadata.metadata or {}).get(_INFO_KEY, "{}"))
    except (OSError, ValueError) as reason:  # ArrowInvalid and JSONDecodeError are ValueErrors
        raise DamagedShardError(f"'{path}' is damaged: it cannot be read ({first_line(reason)})") from reason
    digest = info.pop("sha256", None)  # version 0.1.0 wrote none
    if digest is not None and (
        digest != json_sha256(info) or (info["file"], info["num_rows"]) != (path.name, metadata.num_rows)
    ):
        raise DamagedShardError(f"'{path}' is damaged: it does not say what was written")
    return ShardInfo(info.get("num_images", 0), metadata.num_rows, info.get("skipped", {}), info.get("settings", ""))


class ShardWriter:
    """Tokenizes the rows of a shard and writes its file.

    Batches are cut within a shard: which images are encoded together depends on neither processes nor restarts. Images
    are read by threads, a few batches ahead.

    Args:
        model: The tokenizer, in eval mode on its device.
        processor: Its image processor.
        views: The views of each image.
        features: The columns, see `token_features`.
        settings: Hash of the settings, for the file's metadata.
        executor: Threads that read images.
        batch_size: Views in a forward pass.
        root: Folder of the images; keys are paths below it. None for data sets that are no folders of images.
        strict: Whether an unreadable image is an error.
        on_image: Called after each image.
    """

    def __init__(
        self,
        model: VQModel,
        processor: VQImageProcessor,
        views: Views,
        features: datasets.Features,
        settings: str,
        executor: Executor,
        *,
        batch_size: int = 64,
        root: Path | None = None,
        strict: bool = False,
        on_image: Callable[[], Any] = lambda: None,
    ):
        self.model, self.views, self.features = model, views, features
        self.settings, self.executor, self.batch_size, self.on_image = settings, executor, batch_size, on_image
        self.reader = ImageReader(
            processor.num_channels,
            partial(views, processor=processor),
            name=partial(image_key, root=root),
            strict=strict,
        )

    def write(self, path: Path, rows: Iterable[Row]) -> None:
        """Writes a file, which takes its name when it is whole.

        Raises:
            ValueError: An image cannot be read, under `strict`.
            OSError: The file cannot be written.
        """
        columns: dict[str, list] = {name: [] for name in self.features}
        skipped: dict[str, str] = {}
        pixel_values: list[torch.Tensor] = []
        num_images = 0
        for example in self.reader.read_ahead(rows, self.executor, 2 * self.batch_size // len(self.views.names)):
            num_images += 1
            self.on_image()
            if example.content is None:
                skipped[example.name] = example.reason
                continue
            for view, pixels in zip(self.views.names, example.content, strict=True):
                pixel_values.append(pixels)
                columns["key"].append(example.name)
                columns["view"].append(view)
                if "label" in columns:
                    columns["label"].append(-1 if example.label is None else example.label)
            while len(pixel_values) >= self.batch_size:
                columns["image_tokens"].append(self._encode(pixel_values[: self.batch_size]))
                del pixel_values[: self.batch_size]
        if pixel_values:
            columns["image_tokens"].append(self._encode(pixel_values))

        schema = self.features.arrow_schema
        tokens = schema.field("image_tokens").type
        flat = np.concatenate([np.empty(0, tokens.value_type.to_pandas_dtype()), *columns.pop("image_tokens")])
        arrays = {"image_tokens": pa.FixedSizeListArray.from_arrays(pa.array(flat), tokens.list_size)}
        arrays |= {name: pa.array(column, schema.field(name).type) for name, column in columns.items()}
        info = {
            "file": path.name,
            "num_images": num_images,
            "num_rows": len(columns["key"]),
            "skipped": skipped,
            "settings": self.settings,
        }
        info["sha256"] = json_sha256(info)
        schema = schema.with_metadata({**schema.metadata, _INFO_KEY: json.dumps(info)})
        table = pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)
        with writing(path), atomic_file(path) as temporary, temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd", use_dictionary=["label", "view"], write_page_checksum=True)

    @torch.no_grad()
    def _encode(self, pixel_values: list[torch.Tensor]) -> np.ndarray:
        tokens = self.model.encode(torch.stack(pixel_values).to(self.model.device)).image_tokens
        dtype = self.features.arrow_schema.field("image_tokens").type.value_type.to_pandas_dtype()
        return tokens.flatten().cpu().numpy().astype(dtype)


def image_key(row: Any, index: int, root: Path | None = None) -> str:
    """The key of a row's image in a token data set.

    Args:
        row: A row of an image data set.
        index: Its number.
        root: Folder of the images; None for data sets that are no folders of images.

    Returns:
        The path below the folder. Elsewhere names may repeat, and the row's number goes before them.
    """
    return path_key(row_path(row), index, root)


def path_key(path: str | None, index: int, root: Path | None = None) -> str:
    """The key of an image whose row has this path, or none; see `image_key`."""
    if path and root is not None and Path(path).is_relative_to(root):
        return Path(path).relative_to(root).as_posix()
    return f"{index:09d}" + (f"-{os.path.basename(path)}" if path else "")
