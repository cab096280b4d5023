# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of an image classifier with a quantized layer."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_quantizer_vq import QuantizerConfig
from .pixel_range_vq import SIGNED, check_pixel_range

BACKBONES: dict[str, dict[str, Any]] = {
    "resnet18": {
        "model_type": "resnet",
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
    },
    "vit_tiny": {
        "model_type": "vit",
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    },
}
"""Backbones that [`VQImageClassificationConfig`] knows by name, as fields of transformers' configurations."""


@strict
class VQImageClassificationConfig(QuantizerConfig):
    r"""Configuration of a [`VQModelForImageClassification`]: the network, where it is quantized, and how.

    `VQImageClassificationConfig(num_labels=10)` is a small AlexNet for 32 px, quantized after the third of its seven
    layers. `VQImageClassificationConfig(backbone_config="resnet18", image_size=224, num_labels=100)` is a ResNet-18
    quantized after the second of its four stages.

    Args:
        backbone_config: Configuration of any model that `AutoBackbone` knows, or a `ViTConfig`. A `dict` may leave out
            `image_size` and `num_channels`. `"resnet18"` and `"vit_tiny"` stand for these networks; the ViT has
            patches of 16 px, or of 4 px for images below 128 px. The default is this package's AlexNet.
        image_size: Side of the images, at least 8. A backbone's field must agree.
        num_channels: Channels of the images, 3 or 1. A backbone's field must agree.
        pixel_range: The values of black and of white in the pixels that the model takes: `[-1.0, 1.0]` or `[0.0,
            1.0]`.
        base_channels: AlexNet only. Width of its first layer. The original has 64.
        dropout: AlexNet only. Dropout before its fully connected layers, in [0, 1).
        quantized_layer: The layer whose output is quantized. An `int` is the number of a block, from the end if
            negative; blocks are the stages of a CNN, or the layers of a transformer or of the AlexNet. A `str` is the
            name of any module in the backbone. The default is the block in the middle.
        quantized_size: Channels of that layer's output, which are the dimension of the codes. By default the model
            runs a blank image when it is made, and records here what it finds.
        quantized_axis: Axis of these channels: 1 in feature maps (batch, channels, height, width), otherwise -1, the
            last. By default it is found in the same way.
        kwargs: `num_labels`, `id2label`, `label2id` and the rest of transformers' arguments.

    The fields of the quantizer and `commitment_weight` are those of [`QuantizerConfig`].
    """

    model_type = "hf_vq_classifier"
    # `Trainer` predicts only the logits. The other outputs are not rows of a batch.
    keys_to_ignore_at_inference = [
        "classification_loss", "commitment_loss", "image_tokens", "perplexity", "usage", "quantization_error",
        "replaced", "hidden_states", "attentions",
    ]  # fmt: skip
    sub_configs = {"backbone_config": AutoConfig}  # type: ignore[assignment]

    backbone_config: Any = None
    image_size: int = 32
    num_channels: int = 3
    pixel_range: list[float | int] | tuple[float | int, ...] = SIGNED
    base_channels: int = 64
    dropout: float | int = 0.5
    quantized_layer: int | str | None = None
    quantized_size: int | None = None
    quantized_axis: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.pixel_range = [float(end) for end in self.pixel_range]
        if isinstance(self.backbone_config, str):
            self.backbone_config = self._named_backbone(self.backbone_config)
        if not isinstance(self.backbone_config, dict | PreTrainedConfig | None):
            raise ValueError(
                "`backbone_config` must be a configuration of transformers, a `dict` of its fields or a name, got "
                f"{self.backbone_config!r}."
            )
        if isinstance(self.backbone_config, dict):
            if self.backbone_config.get("model_type") not in CONFIG_MAPPING:
                raise ValueError(
                    "`backbone_config` needs a 'model_type' that names one of transformers' models, such as 'resnet', "
                    f"got {self.backbone_config}."
                )
            defaults = CONFIG_MAPPING[self.backbone_config["model_type"]]()
            ours: dict[str, Any] = {}
            for name in ("image_size", "num_channels"):
                if hasattr(defaults, name):
                    default, value = getattr(defaults, name), getattr(self, name)  # some have a list of sides
                    ours[name] = [value] * len(default) if isinstance(default, (list, tuple)) else value
            self.backbone_config = ours | self.backbone_config
        self.count_codes(self.quantized_size)
        super().__post_init__(**kwargs)

    def _build_nested(self) -> None:
        if isinstance(self.backbone_config, dict):
            self.backbone_config = CONFIG_MAPPING[self.backbone_config["model_type"]](**self.backbone_config)

    def quantizer_kwargs(self) -> dict[str, Any]:
        """Returns the keyword arguments for the quantizer layer that `quantizer_type` names.

        Returns:
            `dict`: Arguments of the layer's class.

        Raises:
            ValueError: If `quantized_size` is not known yet, because no model was made.
        """
        if self.quantized_size is None:
            raise ValueError("`quantized_size` is not known yet. Make a model of this configuration first.")
        return self._quantizer_kwargs(self.quantized_size, dim=-1)

    def validate_architecture(self) -> None:
        """Checks the network's fields against each other. It runs when a config is made and when it is saved."""
        super().validate_architecture()
        check_pixel_range(self.pixel_range)
        self._require_at_least("image_size", 8)
        self._require_at_least("base_channels", 1)
        if self.num_channels not in (1, 3):
            raise ValueError(f"`num_channels` must be 3 (RGB) or 1 (gray), got {self.num_channels}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}.")
        if self.quantized_size is not None:
            self._require_at_least("quantized_size", 1)
        if self.quantized_axis not in (None, 1, -1):
            raise ValueError(f"`quantized_axis` must be 1 or -1, got {self.quantized_axis}.")
        for name in ("image_size", "num_channels"):
            theirs = getattr(self.backbone_config, name, None)
            if theirs is not None and set(theirs if isinstance(theirs, list | tuple) else [theirs]) != {
                getattr(self, name)
            }:
                raise ValueError(
                    f"`{name}={getattr(self, name)}` does not fit the backbone, which has {name}={theirs}. Give both "
                    "the same value."
                )

    def validate_quantizer(self) -> None:
        """Checks the quantizer's fields against each other. It runs when a config is made and when it is saved."""
        self._check_quantizer(self.quantized_size, "the channels of the quantized layer, `quantized_size`,")

    def _named_backbone(self, name: str) -> dict[str, Any]:
        if name not in BACKBONES:
            raise ValueError(
                f"There is no backbone {name!r}. Choose among {list(BACKBONES)}, give a configuration of "
                "transformers, or nothing for the AlexNet."
            )
        patches = {"patch_size": 16 if self.image_size >= 128 else 4} if name == "vit_tiny" else {}
        return BACKBONES[name] | patches


VQImageClassificationConfig.register_for_auto_class()

__all__ = ["BACKBONES", "VQImageClassificationConfig"]
