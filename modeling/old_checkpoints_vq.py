# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""What configurations of older checkpoints lack, and where else it can be read."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file, logging

from .image_processing_vq import VQImageProcessor
from .pixel_range_vq import UNIT, pixel_range_of

logger = logging.get_logger(__name__)

_HUB_ARGUMENTS = ("cache_dir", "local_files_only", "proxies", "subfolder", "token")


class OldCheckpointMixin:
    """A model whose `from_pretrained` completes the configurations of older checkpoints."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As every model's.

        An older checkpoint has no `pixel_range` in its configuration. There the image processor beside the weights
        says whether the pixels are in [0, 1].
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)  # type: ignore[misc]
        if pretrained_model_name_or_path is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            hub_arguments = {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
            # The commit that was loaded, which needs no further request for what is in the cache.
            hub_arguments["revision"] = getattr(model.config, "_commit_hash", None) or kwargs.get("revision")
            _complete_pixel_range(model.config, pretrained_model_name_or_path, hub_arguments)
        return loaded


def _complete_pixel_range(config: Any, name: str | os.PathLike, hub_arguments: dict[str, Any]) -> None:
    """Sets a `pixel_range` of [0, 1] that only the image processor knows of."""
    recorded, _ = PreTrainedConfig.get_config_dict(name, **hub_arguments)
    config = getattr(config, "vq_config", config)  # a generator's tokenizer
    if "pixel_range" in recorded.get("vq_config", recorded):
        return
    try:
        found = cached_file(name, IMAGE_PROCESSOR_NAME, **hub_arguments, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        logger.warning(
            f"The configuration of '{name}' says no `pixel_range`, and its image processor cannot be fetched: {error} "
            f"The pixels are taken to be in {config.pixel_range}."
        )
        return
    if found is not None:
        processor = VQImageProcessor.from_dict(json.loads(Path(found).read_text(encoding="utf-8")))
        if pixel_range_of(processor) == list(UNIT):
            config.pixel_range = list(UNIT)


__all__ = ["OldCheckpointMixin"]
