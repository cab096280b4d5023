# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""The pipeline "image-generation": classes to images."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from transformers import Pipeline

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
        **kwargs: Any,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Makes one image for each class.

        Args:
            inputs: A class or a list of classes. A class is a number, a name from the config's `id2label`, or `None`
                for an image of no class. `None` cannot be mixed with others.
            batch_size: Images at a time. By default that of the pipeline, or all images.
            generator: One, or one for each image.
            kwargs: The options of [`MaskGitSampling`], such as `num_steps=12`, or `sampling=MaskGitSampling(...)`.

        Returns:
            A dictionary for each class, in a list if the classes are in one. Its `"image"` is a PIL image, its
            `"image_tokens"` a `torch.LongTensor` (h, w) or (h, w, groups), on the CPU.

        Raises:
            `ValueError`: for an unknown name, and as `generate` does.
        """
        single = inputs is None or isinstance(inputs, (int, str))
        labels: list[int | str | None] = [inputs] if single else list(inputs)  # type: ignore[arg-type,list-item]
        generators = generator if generator is None or isinstance(generator, torch.Generator) else list(generator)
        if isinstance(generators, list) and len(generators) != len(labels):
            raise ValueError(
                f"`generator` must be one, or one for each of the {len(labels)} images, got {len(generators)}."
            )
        size = batch_size or self._batch_size or max(len(labels), 1)
        batches = []
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            own = generators[part] if isinstance(generators, list) else generators
            batches.append({"labels": labels[part], "generator": own})
        if not batches:
            return []
        results = [result for batch in super().__call__(batches, batch_size=1, **kwargs) for result in batch]
        return results[0] if single else results

    def _sanitize_parameters(  # type: ignore[override]
        self, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        allowed = ["sampling", *(option.name for option in fields(MaskGitSampling))]
        unknown = sorted(kwargs.keys() - set(allowed))
        if unknown:
            raise ValueError(f"The pipeline does not know {unknown}. Its arguments are {allowed}.")
        return {}, kwargs, {}

    def preprocess(self, input_: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """Turns names into numbers and returns arguments of `generate`."""
        labels = [self._to_number(label) for label in input_["labels"]]
        if None in labels and any(label is not None for label in labels):
            raise ValueError("Classes and `None` cannot be mixed in one call.")
        return {
            "class_labels": None if None in labels else labels,
            "num_images": len(labels),
            "generator": input_["generator"],
        }

    def _to_number(self, label: int | str | None) -> int | None:
        if not isinstance(label, str):
            return label
        numbers = {name: number for number, name in self.model.config.id2label.items()}
        if label not in numbers:
            raise ValueError(f"There is no class {label!r}. The classes are {list(numbers)[:20]}; numbers work, too.")
        return numbers[label]

    def _forward(self, input_tensors: dict[str, Any], **kwargs: Any) -> Any:  # type: ignore[override]
        return self.model.generate(**input_tensors, **kwargs)

    def postprocess(self, model_outputs: Any) -> list[dict[str, Any]]:  # type: ignore[override]
        """One dictionary for each image."""
        # Views would keep the whole batch alive, and save it with each image.
        tokens = [tokens.clone() for tokens in model_outputs.image_tokens]
        return [{"image": image, "image_tokens": own} for image, own in zip(model_outputs.images, tokens, strict=True)]


__all__ = ["CUSTOM_PIPELINES", "ImageGenerationPipeline"]
