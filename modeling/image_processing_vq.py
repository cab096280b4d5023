# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Images to the tensors that [`VQModel`] takes, and back; Pillow and NumPy only."""

import base64
import os
from io import BytesIO
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .fetching_vq import fetch
from .limits_vq import MAX_SIDE, require_at_most
from .opening_vq import load, open_image, upright
from .pixel_range_vq import SIGNED
from .thin_images_vq import thin_margins

_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


class VQImageProcessorKwargs(ImagesKwargs, total=False):
    """The arguments that all image processors share, and one more.

    Args:
        num_channels: 3 converts every image to RGB, 1 to gray.
    """

    num_channels: int | None


class VQImageProcessor(PilBackend):
    r"""Resizes the shorter side, crops the middle, converts to RGB or gray and scales to [-1, 1] or [0, 1].

    `VQImageProcessor.for_config(model.config)` makes the pixels that a model takes.

    Every kind of image that Pillow opens comes out right: transparency (also of palettes) is laid over white, 16-bit
    gray is scaled to 8 bits, CMYK and palettes are converted, photographs are turned upright by their EXIF tag.
    Arrays and tensors of integers hold 8-bit values (16-bit ones are scaled), those of floating-point numbers values
    in [0, 1]; both may be (height, width, channels) or (channels, height, width).

    Args:
        image_size: Short for `size={"shortest_edge": image_size}` and a square `crop_size`; 256 if neither is given.
        num_channels: 3 for RGB, 1 for gray.
        kwargs: `size`, `crop_size`, `resample`, `do_resize`, `do_center_crop`, `do_rescale`, `do_normalize`,
            `image_mean`, `image_std` and the rest of transformers' image arguments. The pixels are in [-1, 1], or in
            [0, 1] with `do_normalize=False`.

    Example:

    ```python
    >>> processor = VQImageProcessor(image_size=64)
    >>> processor(images, return_tensors="pt").pixel_values  # (batch, 3, 64, 64) in [-1, 1]
    >>> processor.postprocess(pixel_values)  # list of PIL images
    ```
    """

    valid_kwargs = VQImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    size = {"shortest_edge": 256}
    crop_size = {"height": 256, "width": 256}
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_convert_rgb = True
    do_rescale = True
    do_normalize = True
    image_mean = 0.5
    image_std = 0.5
    num_channels = 3

    def __init__(self, image_size: int | None = None, **kwargs: Any) -> None:
        if image_size is not None:
            if image_size < 1:
                raise ValueError(f"`image_size` must be at least 1, got {image_size}.")
            kwargs.setdefault("size", {"shortest_edge": image_size})
            kwargs.setdefault("crop_size", {"height": image_size, "width": image_size})
        super().__init__(**kwargs)
        for name in ("size", "crop_size", "pad_size"):
            for side in dict(getattr(self, name, None) or {}).values():
                if side is not None:
                    require_at_most(f"A side of `{name}`", side, MAX_SIDE)
        if self.num_channels not in (1, 3):
            raise ValueError(f"`num_channels` must be 3 (RGB) or 1 (gray), got {self.num_channels}.")

    @classmethod
    def for_config(cls, config: Any) -> "VQImageProcessor":
        """The image processor that makes the pixels that a model takes.

        Args:
            config ([`VQConfig`], [`VQImageClassificationConfig`] or [`MaskGitConfig`]):
                Says the size, the channels and the range; a generator's does by way of its tokenizer's.
        """
        config = getattr(config, "vq_config", config)
        return cls(
            image_size=config.image_size,
            num_channels=config.num_channels,
            do_normalize=tuple(config.pixel_range) == SIGNED,
        )

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens what paths and URLs name, in a list or alone; images pass through, gray arrays get a channel axis.

        What is opened keeps its mode; the base class would force it to 8-bit RGB, dropping what lies beyond.
        """
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            return _open(os.fspath(image_url_or_urls))
        if isinstance(image_url_or_urls, (np.ndarray, torch.Tensor)) and image_url_or_urls.ndim == 2:
            return image_url_or_urls[None]
        return super().fetch_images(image_url_or_urls)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | None = None,
        num_channels: int | None = None,
        do_rescale: bool | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """One image of any kind to an array (channels, height, width), of 8-bit values if it is to be rescaled.

        Args:
            image: The image.
            do_convert_rgb: Whether to convert to `num_channels`; if not, channels stay as they are.
            input_data_format: `"channels_first"` or `"channels_last"` for arrays and tensors.
            num_channels: 3 or 1.
            do_rescale: If off, floating-point arrays are taken as they are.

        Returns:
            `np.ndarray`: uint8, or a floating-point dtype for floating-point arrays without rescaling.

        Raises:
            `ValueError`: if values lie outside the range of their kind, or the layout is not an image's.
        """
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu().numpy()
        if isinstance(image, np.ndarray):
            if np.issubdtype(image.dtype, np.floating) and not do_rescale:
                return super().process_image(
                    image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
                )
            # The base class brings the axes in order; the values are converted first.
            channels_first = super().process_image(_to_8_bit(image), False, input_data_format, **kwargs)
            image = _to_pil(channels_first)
        else:
            load(image)
            image = upright(image)
        if do_convert_rgb:
            image = _convert(image, "L" if num_channels == 1 else "RGB")
        return super().process_image(image, do_convert_rgb=False)

    def _preprocess(self, images: list[np.ndarray], *args: Any, **kwargs: Any) -> Any:
        size, crop = kwargs["size"], kwargs["crop_size"]
        if kwargs["do_resize"] and kwargs["do_center_crop"] and size.shortest_edge and not size.longest_edge:
            images = [_cut_thin(image, size.shortest_edge, (crop.height, crop.width)) for image in images]
        return super()._preprocess(images, *args, **kwargs)

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs: Any) -> np.ndarray:  # type: ignore[override]
        """Cuts the middle out of an image (channels, height, width); refuses one that is smaller than the crop."""
        height, width = image.shape[-2:]
        if height < size.height or width < size.width:
            raise ValueError(
                f"An image of {height} x {width} pixels is smaller than the crop of {size.height} x {size.width}. "
                'Let `do_resize` enlarge it, with a `size["shortest_edge"]` of at least the crop\'s larger side.'
            )
        return super().center_crop(image, size, **kwargs)

    def postprocess(
        self, pixel_values: torch.Tensor, output_type: Literal["pil", "np", "pt"] = "pil"
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Pixels of the model to 8-bit images: the inverse of the normalization, clamped and rounded.

        Args:
            pixel_values: (batch, channels, height, width), of the range that the processor makes.
            output_type: `"pil"`, `"np"` or `"pt"`. What to return.

        Returns:
            a list of PIL images, a uint8 array (batch, height, width, channels), or a uint8 tensor
            (batch, channels, height, width).

        Raises:
            `ValueError`: for another rank or an unknown `output_type`.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'`output_type` must be "pil", "np" or "pt", got {output_type!r}.')
        if pixel_values.ndim != 4:
            raise ValueError(
                f"`pixel_values` must have the shape (batch, channels, height, width), "
                f"got {tuple(pixel_values.shape)}."
            )
        images = pixel_values.detach().float()
        if self.do_normalize:
            mean, std = (
                torch.tensor(value, device=images.device).reshape(1, -1, 1, 1)
                for value in (self.image_mean, self.image_std)
            )
            images = images * std + mean
        if self.do_rescale:
            images = images / self.rescale_factor
        images = images.round().clamp(0, 255).to(torch.uint8)
        if output_type == "pt":
            return images
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        return arrays if output_type == "np" else [_to_pil(array.transpose(2, 0, 1)) for array in arrays]


def _open(source: str) -> Image.Image:
    """The image at a path or URL, or encoded in a `data:` URI."""
    file: str | BytesIO = source
    if source.startswith(("http://", "https://")):
        file = BytesIO(fetch(source))
    elif source.startswith("data:image/"):
        file = BytesIO(base64.b64decode(source.partition(",")[2]))
    elif not os.path.isfile(source):
        raise FileNotFoundError(f"No such file: {source[:200]!r}. An image is named by a path or by a URL http(s)://.")
    return open_image(file)


def _cut_thin(image: np.ndarray, resized: int, crop: tuple[int, int]) -> np.ndarray:
    """Cuts off both ends of a thin image (channels, height, width) what the center crop leaves out anyway."""
    edges = image.shape[-2:]
    short, long = min(edges), max(edges)
    axis = edges.index(long)
    start = (resized * long // short - crop[axis]) // 2
    # The same at both ends, so that the center stays the center.
    margin = min(thin_margins(long, short, resized, start, crop[axis]))
    kept = slice(margin, long - margin)
    return image[:, kept] if axis == 0 else image[:, :, kept]


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Numbers of any dtype, full range for that dtype, to uint8."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        return np.round(values / 257).astype(np.uint8)
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if np.issubdtype(values.dtype, np.floating):
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"Floating-point images must hold values in [0, 1], got [{low}, {high}]. Pass 8-bit integers, or "
                "scale the values and set `do_rescale=False`."
            )
        return np.round(values * 255).astype(np.uint8)
    if not (low >= 0 and high <= 255):
        raise ValueError(f"Images of {values.dtype} must hold values in [0, 255], got [{low}, {high}].")
    return values.astype(np.uint8)


def _to_pil(array: np.ndarray) -> Image.Image:
    """A uint8 array (channels, height, width) with 1 to 4 channels to a PIL image."""
    if array.shape[0] == 1:
        return Image.fromarray(np.ascontiguousarray(array[0]))
    return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))


def _convert(image: Image.Image, mode: Literal["RGB", "L"]) -> Image.Image:
    """Any PIL image to 8-bit RGB or gray: 16 bits scaled instead of clipped, transparency laid over white."""
    if image.mode.startswith("I"):
        # Pillow has no 32-bit pictures of its own: it reads 16-bit gray as "I;16" or, from some formats, as "I".
        image = Image.fromarray(_to_8_bit(_require_16_bit(np.asarray(image))))
    elif image.mode == "F":
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if "transparency" in image.info or image.mode in _ALPHA_MODES:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _require_16_bit(values: np.ndarray) -> np.ndarray:
    if values.size and not (values.min() >= 0 and values.max() <= 65535):
        raise ValueError(
            f"An integer image must hold 16-bit values in [0, 65535], got [{values.min()}, {values.max()}]."
        )
    return values.astype(np.uint16)


VQImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["VQImageProcessor", "VQImageProcessorKwargs"]
