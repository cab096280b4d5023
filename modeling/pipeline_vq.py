# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The pipeline "image-tokenization": it turns images of any form into grids of tokens, and grids back into images."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import Pipeline
from transformers.utils import logging

from .folders_vq import IMAGE_EXTENSIONS, walk_folder
from .formats_vq import OutputFormat, check_output_format, to_format
from .grids_vq import group_by_shape, to_grids, usual_grid
from .pixel_range_vq import require_pixel_range

logger = logging.get_logger(__name__)

CUSTOM_PIPELINES: dict[str, Any] = {
    "image-tokenization": {"impl": "pipeline_vq.ImageTokenizationPipeline", "pt": ["AutoModel"]}
}
"""Goes into the config of a saved model, so `pipeline(..., trust_remote_code=True)` finds this file beside it."""

_IMAGE_TYPES = (str, os.PathLike, Image.Image, np.ndarray, torch.Tensor)
_MAX_NAMES = 10  # how many skipped images the warning names


@dataclass
class _Input:
    """One input: an image, its position among the inputs, and the error if the source could not give it."""

    image: Any
    position: int | None = None
    error: Exception | None = None

    def __str__(self) -> str:
        place = "The image" if self.position is None else f"Image {self.position}"
        image = self.image
        if self.error is not None:
            return place
        if isinstance(image, str):
            return f"{place} ({image if len(image) <= 200 else image[:200] + '...'})"
        if isinstance(image, os.PathLike):
            return f"{place} ({image})"
        if isinstance(image, Image.Image):
            name = getattr(image, "filename", "") or "PIL image"
            return f"{place} ({name}, mode {image.mode}, {image.width} x {image.height} pixels)"
        if isinstance(image, (np.ndarray, torch.Tensor)):
            kind = "array" if isinstance(image, np.ndarray) else "tensor"
            return f"{place} ({kind} of shape {tuple(image.shape)}, {image.dtype})"
        return f"{place} ({type(image).__name__})"


class _Inputs(Dataset[_Input]):
    """The images of a list, a data set or a column, numbered. If reading one fails, the loop goes on."""

    def __init__(self, images: Sequence[Any]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> _Input:
        try:
            return _Input(self.images[position], position)
        except Exception as error:  # data sets decode an image when it is asked for
            return _Input(None, position, error)


class ImageTokenizationPipeline(Pipeline):
    r"""Turns images into the tokens of a [`VQModel`], and tokens into images.

    `import hf_vq` makes it known to [`~transformers.pipeline`]. Without the package, `trust_remote_code=True` loads it
    from the model's repository. The pipeline puts the model into eval mode.
    Example:

    ```python
    >>> import hf_vq
    >>> from transformers import pipeline

    >>> pipe = pipeline("image-tokenization", model="user/vq-emoji")
    >>> outputs = pipe(["a.png", image], batch_size=2)
    >>> outputs[0]["image_tokens"].shape
    torch.Size([8, 8])
    >>> pipe.decode(outputs)[0].save("reconstruction.png")
    ```
    """

    model: Any
    image_processor: Any
    _load_image_processor = True  # type: ignore[assignment]
    _load_tokenizer = _load_feature_extractor = False  # type: ignore[assignment]
    _load_video_processor = _load_processor = False  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.image_processor is not None:
            require_pixel_range(self.image_processor, self.model.config)

    def __call__(  # type: ignore[override]
        self, inputs: Any, **kwargs: Any
    ) -> dict[str, Any] | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """Turns images into tokens.

        Args:
            inputs: One image, many, or the path of a folder. An image is a path, a URL, a PIL image, an array or a
                tensor. Arrays and tensors are (height, width, channels) or (channels, height, width), of 8-bit
                integers or of floating-point numbers in [0, 1]. Many images are a list or a tuple, a batch array or
                tensor with four axes, a column of a data set, a [`~transformers.pipelines.pt_utils.KeyDataset`], a
                generator or any other iterable. A folder is read in the order of its files' names, at any depth,
                without hidden files.
            return_reconstruction: Whether to decode the tokens, too.
            return_latents: Whether to return the vectors before quantization, too.
            on_error: `"raise"` or `"skip"`. What to do with an image that cannot be read. `"skip"` puts a record with
                the single key `"error"` in its place, and warns at the end with the count and the names.
            output_format: `"numpy"` gives arrays, 8-bit ones of images. `"json"` gives what `json.dumps` takes: nested
                lists, and PNGs of images as text `"data:image/png;base64,..."`. The default is torch and PIL.
            batch_size: Images per forward. The default is the pipeline's, or 1.
            num_workers: Processes that read images. The default is the pipeline's, or 0.

        Returns:
            A dictionary for one image. A list of dictionaries for a list, a tuple, a batch or a folder. For anything
            else, an iterator that reads on as it is consumed. The keys are:

            - `"image_tokens"`: `torch.LongTensor` (h, w), or (h, w, groups) with more than one group, on the CPU.
            - `"reconstruction"`, if asked for: a PIL image.
            - `"latents"`, if asked for: `torch.FloatTensor` (embed_dim, h, w) in the model's dtype, on the CPU.
            - `"file"`, of a folder's images: the path below the folder.

        Raises:
            ValueError: If an image cannot be read, with its position and what it was, or if an argument is wrong.
        """
        if isinstance(inputs, (str, os.PathLike)) and os.path.isdir(inputs):
            return self._tokenize_folder(Path(inputs), **kwargs)
        if _is_single(inputs):
            return list(_warn_of_skipped([super().__call__(_Input(inputs), **kwargs)]))[0]
        images: Any
        if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
            images = _Inputs(inputs)
        else:
            images = (_Input(image, position) for position, image in enumerate(inputs))
        is_empty = isinstance(images, _Inputs) and not len(inputs)  # transformers 5.4 looks at the first
        results = iter(()) if is_empty else _warn_of_skipped(super().__call__(images, **kwargs))
        return list(results) if isinstance(inputs, (list, tuple, np.ndarray, torch.Tensor)) else results

    def _tokenize_folder(self, root: Path, **kwargs: Any) -> list[dict[str, Any]]:
        files, others, links = walk_folder(root)
        if not files:
            expected = " ".join(sorted(IMAGE_EXTENSIONS))
            raise ValueError(f"There is no image in the folder {str(root)!r}: expected files ending in {expected}.")
        if others or links:
            names = [str(path.relative_to(root)) for path in (*others, *links)]
            more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
            logger.warning("%s: left out what is no image: %s%s", root, ", ".join(names[:_MAX_NAMES]), more)
        results: Any = self([str(file) for file in files], **kwargs)
        return [{"file": str(file.relative_to(root)), **result} for file, result in zip(files, results, strict=True)]

    def decode(
        self, image_tokens: Any, batch_size: int | None = None, output_format: OutputFormat | None = None
    ) -> Any:
        """Turns tokens into images.

        Args:
            image_tokens: One grid or many. A grid is (h, w), or (h, w, groups) with more than one group: a tensor, an
                array, nested lists, or what the pipeline returned for an image. Many grids are a list, an iterator, or
                a batch with one more axis. Grids in a list may differ in size. A flat sequence, row after row, is a
                grid of the size that the pipeline makes; a batch of them is many grids.
            batch_size: Grids per forward. The default is the pipeline's, or 1.
            output_format: `"numpy"` or `"json"`, as in a call. The default is the pipeline's, or PIL images.

        Returns:
            A PIL image for one grid, a list of PIL images for many; with `output_format`, what it makes of these.

        Raises:
            ValueError: If a shape or dtype is wrong, if ids are out of range, or if a record is of a skipped image.
        """
        check_output_format(output_format)
        output_format = output_format or self._postprocess_params.get("output_format")
        config = self.model.config
        grids, is_single = to_grids(image_tokens, config.num_groups, *usual_grid(self.image_processor, config))
        images = self._decode_grids(grids, batch_size or self._batch_size or 1)
        converted = [to_format(image, output_format) for image in images]
        return converted[0] if is_single else converted

    def _decode_grids(self, grids: list[torch.Tensor], batch_size: int) -> list[Image.Image]:
        images: dict[int, Image.Image] = {}
        self.model.eval()
        with self.device_placement(), self.get_inference_context()():
            for alike in group_by_shape(grids):
                for start in range(0, len(alike), batch_size):
                    positions = alike[start : start + batch_size]
                    batch = torch.stack([grids[position].to(self.device) for position in positions])
                    pixel_values = self.model.decode(image_tokens=batch).decoded_pixel_values
                    images |= zip(positions, self.image_processor.postprocess(pixel_values), strict=True)
        return [images[position] for position in range(len(grids))]

    def _sanitize_parameters(  # type: ignore[override]
        self,
        return_reconstruction: bool | None = None,
        return_latents: bool | None = None,
        on_error: Literal["raise", "skip"] | None = None,
        output_format: OutputFormat | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if on_error not in (None, "raise", "skip"):
            raise ValueError(f'`on_error` must be "raise" or "skip", got {on_error!r}.')
        check_output_format(output_format)
        preprocess = {"on_error": on_error}
        forward = {"return_reconstruction": return_reconstruction, "return_latents": return_latents}
        given = [
            {name: value for name, value in kwargs.items() if value is not None}
            for kwargs in (preprocess, forward, {"output_format": output_format})
        ]
        return given[0], given[1], given[2]

    def preprocess(  # type: ignore[override]
        self, input_: Any, on_error: Literal["raise", "skip"] = "raise"
    ) -> dict[str, Any]:
        """Turns an image into a batch of one, {"image": {"pixel_values": ...}}, or into {"image": {"error": ...}}."""
        item = input_ if isinstance(input_, _Input) else _Input(input_)
        try:
            pixel_values = self._read(item)
        except Exception as error:  # decoders raise almost anything
            message = f"{item} cannot be tokenized: {type(error).__name__}: {error}"
            if on_error == "raise":
                raise ValueError(message) from error
            return {"image": {"error": message}}
        return {"image": {"pixel_values": pixel_values}}

    def _read(self, item: _Input) -> torch.Tensor:
        if item.error is not None:
            raise item.error
        image = item.image
        if isinstance(image, Mapping):
            raise TypeError(f'it is a row with the columns {list(image)}; pass one column, such as `dataset["image"]`')
        if not isinstance(image, _IMAGE_TYPES):
            raise TypeError("an image is a path, a URL, a PIL image, an array or a tensor")
        if isinstance(image, (str, os.PathLike)) and os.path.isdir(image):
            raise ValueError("it is a folder, which is read only if it is passed alone")
        if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim not in (2, 3):
            raise ValueError("an image has two or three axes")
        pixel_values = self.image_processor(image, return_tensors="pt").pixel_values
        self.model.check_pixel_values(pixel_values)
        return pixel_values

    def _forward(  # type: ignore[override]
        self, input_tensors: dict[str, Any], return_reconstruction: bool = False, return_latents: bool = False
    ) -> dict[str, list[dict[str, Any]]]:
        # transformers neither pads nor concatenates a list of dictionaries on the way here. So the images of a batch
        # can differ in size or be missing.
        images = input_tensors["image"] if isinstance(input_tensors["image"], list) else [input_tensors["image"]]
        results: list[dict[str, Any]] = [{"error": image["error"]} if "error" in image else {} for image in images]
        self.model.eval()
        for alike in group_by_shape([image.get("pixel_values") for image in images]):
            encoded = self.model.encode(torch.cat([images[index]["pixel_values"] for index in alike]))
            columns = {"image_tokens": encoded.image_tokens.cpu()}
            if return_reconstruction:
                decoded = self.model.decode(quantized_states=encoded.quantized_last_hidden_state)
                columns["reconstruction"] = decoded.decoded_pixel_values.cpu()
            if return_latents:
                columns["latents"] = encoded.last_hidden_state.cpu()
            for row, index in enumerate(alike):
                # Copies, because a view would keep, and save, the whole batch.
                results[index] = {name: column[row].clone() for name, column in columns.items()}
        return {"results": results}

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, Any], output_format: OutputFormat | None = None
    ) -> dict[str, Any]:
        """Returns the result of one image, with pixels as a PIL image or as `output_format` says."""
        results = model_outputs["results"]
        result = dict(results[0] if isinstance(results, list) else results)
        if "reconstruction" in result:
            result["reconstruction"] = self.image_processor.postprocess(result["reconstruction"].unsqueeze(0))[0]
        return to_format(result, output_format)


def _is_single(inputs: Any) -> bool:
    """Whether this is one image. What holds no images counts as one, so it gets an error with its name later."""
    if isinstance(inputs, (np.ndarray, torch.Tensor)):
        return inputs.ndim != 4
    return isinstance(inputs, (*_IMAGE_TYPES, Mapping, bytes)) or not (
        isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__")
    )


def _warn_of_skipped(results: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Passes results on. After the last one it warns which images were skipped."""
    count = 0
    errors: list[str] = []
    for result in results:
        if "error" in result:
            count += 1
            if len(errors) < _MAX_NAMES:
                errors.append(result["error"])
        yield result
    if count:
        rest = f"\n... and {count - len(errors)} more" if count > len(errors) else ""
        plural = "" if count == 1 else "s"
        logger.warning("Skipped %d image%s:\n%s%s", count, plural, "\n".join(errors), rest)


__all__ = ["CUSTOM_PIPELINES", "ImageTokenizationPipeline"]
