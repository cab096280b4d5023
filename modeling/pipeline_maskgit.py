# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The pipeline "image-generation": classes to images, and parts of images made anew."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from transformers import Pipeline

from .class_names_maskgit import class_numbers
from .formats_vq import OutputFormat, check_output_format, to_format
from .inpainting_maskgit import read_image_and_mask
from .options_maskgit import MaskGitSampling

CUSTOM_PIPELINES: dict[str, Any] = {
    "image-generation": {"impl": "pipeline_maskgit.ImageGenerationPipeline", "pt": ["AutoModel"]}
}
"""Saved in the model's config, so that `pipeline(..., trust_remote_code=True)` finds this file beside the weights."""


class ImageGenerationPipeline(Pipeline):
    r"""Makes images of given classes with a [`MaskGitModel`].

    After `import hf_vq` [`~transformers.pipeline`] knows it. Without the package `trust_remote_code=True` loads it
    from the model's repository.

    Example:

    ```python
    >>> import hf_vq
    >>> from transformers import pipeline

    >>> pipe = pipeline("image-generation", model="user/maskgit-emoji")
    >>> outputs = pipe(["Food", "Food", 7], num_steps=12, guidance_scale=3.0)
    >>> outputs[0]["image"].save("food.png")
    >>> pipe("Food", image="photo.png", mask="mask.png", keep_pixels=True, seed=0)["image"]
    ```
    """

    model: Any
    _load_image_processor = _load_tokenizer = _load_feature_extractor = False  # type: ignore[assignment]
    _load_video_processor = _load_processor = False  # type: ignore[assignment]

    def __call__(  # type: ignore[override]
        self,
        inputs: int | str | None | Sequence[int | str | None] = None,
        batch_size: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images: int | None = None,
        image: Any = None,
        mask: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Makes images of classes, or makes parts of given images anew.

        Args:
            inputs: A class or a list of classes, one for each image or a single one for all. A class is a number, a
                name from the config's `id2label`, or `None` for an image of no class. `None` cannot be mixed with
                others.
            batch_size: Images at a time. By default that of the pipeline, or all images.
            generator: One, or one for each image.
            num_images: How many images to make. By default as many as there are classes or given images.
            image: An image whose masked parts are made anew, or a list with one for each: a path, a URL, a PIL image,
                an array or a tensor.
            mask: White, or True, where the image is made anew; of the image's size or of its aspect ratio. Likewise.
            seed: Number i of the images is drawn with the seed `seed + i`, whatever the batch size is.
            keep_pixels: Whether pixels outside the mask come back untouched, see [`MaskGitModel.generate`].
            output_format: `"numpy"` gives arrays. `"json"` gives what `json.dumps` takes: nested lists of tokens, and
                PNGs as text `"data:image/png;base64,..."`. The default is torch and PIL.
            kwargs: The options of [`MaskGitSampling`], such as `num_steps=12`, or `sampling=MaskGitSampling(...)`.

        Returns:
            A dictionary for each image, in a list if the classes or images are in one or `num_images` is given. Its
            `"image"` is a PIL image of the model's size, its `"image_tokens"` a `torch.LongTensor` (h, w) or
            (h, w, groups), on the CPU.

        Raises:
            `ValueError`: for an unknown name, an image without a mask, numbers of images that disagree, and as
                `generate` does.
        """
        if (image is None) != (mask is None):
            raise ValueError("`image` and `mask` need each other. Pass both or neither.")
        if num_images is not None and num_images < 1:
            raise ValueError(f"`num_images` must be at least 1, got {num_images}.")
        if generator is not None and not isinstance(generator, torch.Generator):
            generator = list(generator)
        is_class = inputs is None or isinstance(inputs, (int, str))
        given = {"classes": [inputs] if is_class else list(inputs)}  # type: ignore[arg-type]
        if image is not None:
            given |= {"image": _listed(image), "mask": _listed(mask)}
        single = num_images is None and not any(isinstance(each, (list, tuple)) for each in (image, mask)) and is_class
        count = num_images or (max(map(len, given.values())) if all(given.values()) else 0)
        for name, each in given.items():
            if len(each) not in (1, count):
                raise ValueError(
                    f"There must be one of `{name}` for each of the {count} images, or a single one, got {len(each)}."
                )
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"`generator` must be one, or one for each of the {count} images, got {len(generator)}.")
        size = batch_size or self._batch_size or max(count, 1)
        batches = []
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            batch: dict[str, Any] = {name: each if len(each) == 1 else each[part] for name, each in given.items()}
            own = generator[part] if isinstance(generator, list) else generator
            batches.append(batch | {"numbers": range(part.start, part.stop), "generator": own})
        if not batches:
            return []
        results = [result for batch in super().__call__(batches, batch_size=1, **kwargs) for result in batch]
        return results[0] if single else results

    def _sanitize_parameters(  # type: ignore[override]
        self,
        seed: int | None = None,
        output_format: OutputFormat | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        allowed = ["keep_pixels", "sampling", *(option.name for option in fields(MaskGitSampling))]
        unknown = sorted(kwargs.keys() - set(allowed))
        if unknown:
            named = ["image", "mask", "num_images", "seed", "output_format", *allowed]
            raise ValueError(f"The pipeline does not know {unknown}. Its arguments are {named}.")
        check_output_format(output_format)
        return (
            {} if seed is None else {"seed": seed},
            kwargs,
            {} if output_format is None else {"output_format": output_format},
        )

    def preprocess(self, input_: dict[str, Any], seed: int | None = None) -> dict[str, Any]:  # type: ignore[override]
        """Turns names into numbers, reads images and masks, and returns arguments of `generate`."""
        classes, numbers, generator = input_["classes"], input_["numbers"], input_["generator"]
        if None in classes and any(each is not None for each in classes):
            raise ValueError("Classes and `None` cannot be mixed in one call.")
        if seed is not None:
            if generator is not None:
                raise ValueError("Pass `seed` or `generator`, not both.")
            generator = [torch.Generator().manual_seed(seed + number) for number in numbers]
        arguments = {
            "class_labels": None if None in classes else class_numbers(classes, self.model.config),
            "num_images": len(numbers),
            "generator": generator,
        }
        if "image" not in input_:
            return arguments
        images, masks = input_["image"], input_["mask"]
        count = max(len(images), len(masks))
        read = [
            read_image_and_mask(images[i % len(images)], masks[i % len(masks)], self.model.config)
            for i in range(count)
        ]
        pixel_values, pixel_masks = (torch.cat(each) for each in zip(*read, strict=True))
        return arguments | {"pixel_values": pixel_values, "mask": pixel_masks}

    def _forward(self, input_tensors: dict[str, Any], **kwargs: Any) -> Any:  # type: ignore[override]
        return self.model.generate(**input_tensors, **kwargs)

    def postprocess(  # type: ignore[override]
        self, model_outputs: Any, output_format: OutputFormat | None = None
    ) -> list[dict[str, Any]]:
        """One dictionary for each image."""
        # Views would keep the whole batch alive, and save it with each image.
        tokens = [tokens.clone() for tokens in model_outputs.image_tokens]
        return [
            to_format({"image": image, "image_tokens": own}, output_format)
            for image, own in zip(model_outputs.images, tokens, strict=True)
        ]


def _listed(images: Any) -> list[Any]:
    return list(images) if isinstance(images, (list, tuple)) else [images]


__all__ = ["CUSTOM_PIPELINES", "ImageGenerationPipeline"]
