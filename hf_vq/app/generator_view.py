"""What the app asks a generator: images of a class, step by step, and parts of an image anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import torch

from hf_vq.app.pictures import enlarged
from hf_vq.modeling.class_names_maskgit import class_numbers
from hf_vq.modeling.inpainting_maskgit import read_image_and_mask
from hf_vq.modeling.options_maskgit import MaskGitSampling
from hf_vq.plots.canvases import render, to_grid

NO_CLASS = "of no class"
MAX_IMAGES = 16


class GeneratorView:
    """A generator.

    Args:
        model: A `MaskGitModel` in eval mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def classes(self) -> list[str]:
        """What can be asked for: the names of the classes, or `NO_CLASS`."""
        config = self.model.config
        return [*(config.id2label[number] for number in range(config.num_classes)), NO_CLASS]

    def draw(self, name: str, count: int, seed: int, sampling: MaskGitSampling) -> Iterator[PIL.Image.Image]:
        """Makes images, and yields a picture of all of them after each step.

        Args:
            name: One of `classes`.
            count: Number of images, up to `MAX_IMAGES`. Image i is drawn with seed + i.
            seed: Any whole number.
            sampling: How.

        Raises:
            ValueError: For too many images, or sampling that the model cannot do.
        """
        if not 1 <= count <= MAX_IMAGES:
            raise ValueError(f"The number of images must be from 1 to {MAX_IMAGES}, got {count}.")
        out = self.model.generate(
            class_labels=self._labels(name),
            num_images=count,
            generator=[torch.Generator().manual_seed(seed + number) for number in range(count)],
            sampling=sampling,
            return_intermediates=True,
        )
        assert out.intermediates is not None
        for tokens in out.intermediates[:-1]:
            yield enlarged(to_grid(render(self.model, tokens)))
        yield enlarged(to_grid(out.images))

    def inpaint(
        self, image: Any, painted: PIL.Image.Image, name: str, seed: int, sampling: MaskGitSampling, keep_pixels: bool
    ) -> PIL.Image.Image:
        """Makes a part of an image anew.

        Args:
            image: A path or a picture.
            painted: White where it is to be made anew, of the image's aspect ratio.
            name: One of `classes`.
            seed: Any whole number.
            sampling: How.
            keep_pixels: Whether the rest comes back untouched.

        Raises:
            ValueError: Nothing is white, or sampling that the model cannot do.
        """
        pixel_values, mask = read_image_and_mask(image, painted, self.model.config)
        out = self.model.generate(
            class_labels=self._labels(name),
            pixel_values=pixel_values.to(self.model.device),
            mask=mask,
            keep_pixels=keep_pixels,
            generator=torch.Generator().manual_seed(seed),
            sampling=sampling,
        )
        return enlarged(out.images[0])

    def _labels(self, name: str) -> list[int] | None:
        return None if name == NO_CLASS else class_numbers([name], self.model.config)


def painted_mask(layers: list[PIL.Image.Image | None], size: tuple[int, int]) -> PIL.Image.Image:
    """What a person has painted in any layer, as a picture that is white there.

    Args:
        layers: Pictures with transparency, as an image editor gives them.
        size: Width and height of the image below.
    """
    mask = np.zeros((size[1], size[0]), dtype=bool)
    for layer in layers:
        if layer is not None:
            mask |= np.asarray(layer.convert("RGBA").resize(size, PIL.Image.Resampling.NEAREST))[..., 3] > 0
    return PIL.Image.fromarray(mask)


def sampling_of(sampler: str, num_steps: int, guidance_scale: float, temperature: float) -> MaskGitSampling:
    """The sampling options that the app has, with noise on the choice where the sampler takes it.

    Raises:
        ValueError: For a wrong value.
    """
    options: dict[str, Any] = {"num_steps": int(num_steps), "guidance_scale": guidance_scale}
    if sampler == "confidence":
        options["choice_temperature"] = CHOICE_TEMPERATURE
    return MaskGitSampling(sampler=sampler, temperature=temperature, **options)  # type: ignore[arg-type]


CHOICE_TEMPERATURE = 8.0  # with a low temperature: clean images, and no two alike
