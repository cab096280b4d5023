# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""VQModelForImageClassification: an image classifier in which the output of one layer is quantized.

    pixels -layers-> vectors -quantize-> codes -other layers-> features -classifier-> logits

The backbone is a network of transformers, or the AlexNet of alexnet_vq.py. A forward hook on the chosen layer hands
its output to the quantizer, and hands the codes to the layers that follow. So the backbone stays as it is: names of
weights, pretrained checkpoints and everything else. No information goes around the codes. Of a transformer, every
token is quantized, including the class token, because it has already read the others.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoBackbone, AutoModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .alexnet_vq import AlexNet
from .batch_norm_vq import in_backward
from .configuration_vq_classifier import VQImageClassificationConfig
from .modeling_vq import VQPreTrainedModel
from .outputs_vq import ShortOutput, returns_tuples
from .pixel_range_vq import refuse_8_bit_values, require_floating_point
from .quantizer_output_vq import QuantizerOutput
from .quantizers_vq import build_quantizer


@dataclass(repr=False)
class VQImageClassifierOutput(ShortOutput):
    r"""What [`VQModelForImageClassification.forward`] returns.

    What is one number for the batch is returned only in training or with labels, because pipelines slice everything
    that a forward returns.

    Args:
        loss: Scalar. `classification_loss + commitment_weight * commitment_loss`. `None` without labels.
        logits: (batch, num_labels).
        classification_loss: Scalar. Cross entropy. `None` without labels.
        commitment_loss: Scalar. It is 0 under `no_vq`.
        image_tokens: int64. Ids of the codes in [0, num_codes). (batch, h, w) for feature maps, (batch, tokens) for
            sequences, (batch,) for features without position. There is a last axis of groups if there is more than
            one. Some backbones put windows in the place of images; then the tokens of all windows of an image form its
            sequence. `None` while quantization is off (`no_vq`).
        perplexity: Scalar in [1, num_codes]. Exponential of the ids' entropy.
        usage: Scalar in [0, 1]. Share of the codes that the batch uses.
        quantization_error: Scalar without gradient. Mean squared difference, per dimension, of the (normalized)
            vectors and their codes.
        replaced: Boolean (num_codes,). Codes that were initialized or replaced at the start of this training forward.
            `None` if there were none.
        hidden_states: With `output_hidden_states=True`: the backbone's, quantized from the chosen layer on.
        attentions: With `output_attentions=True`: the backbone's.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor = None  # type: ignore[assignment]
    classification_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    usage: torch.Tensor | None = None
    quantization_error: torch.Tensor | None = None
    replaced: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class VQModelForImageClassification(VQPreTrainedModel):
    r"""Image classifier with a quantized layer.

    Args:
        config ([`VQImageClassificationConfig`]): The network, where it is quantized, and how.

    Raises:
        ValueError: If there is no such backbone or layer, or if the layer's output cannot be quantized.

    If you train with transformers' `Trainer`, leave its `label_smoothing_factor` at 0. With smoothing it computes a
    loss of its own from the logits, without the commitment loss.

    Example:

    ```python
    >>> import torch
    >>> config = VQImageClassificationConfig(backbone_config="resnet18", image_size=32, num_labels=10)
    >>> model = VQModelForImageClassification(config).eval()
    >>> out = model(torch.rand(2, 3, 32, 32) * 2 - 1)
    >>> out.logits.shape, out.image_tokens.shape
    (torch.Size([2, 10]), torch.Size([2, 4, 4]))
    ```
    """

    config: VQImageClassificationConfig  # type: ignore[assignment]
    _can_record_outputs = {}
    accepts_loss_kwargs = False  # otherwise `Trainer` would not divide the commitment loss by its accumulation steps

    def __init__(self, config: VQImageClassificationConfig) -> None:
        super().__init__(config)  # type: ignore[arg-type]
        self.num_labels: int = config.num_labels  # type: ignore[assignment]
        self.backbone = _build_backbone(config)
        layer = _find_layer(self.backbone, config.quantized_layer)
        if config.quantized_size is None or config.quantized_axis is None:
            config.quantized_size, config.quantized_axis = _output_layout(self.backbone, layer, config)
            config.count_codes(config.quantized_size)
            config.validate_quantizer()  # now that its size is known
        self.quantize = build_quantizer(config)
        self.classifier = nn.Linear(_num_features(self.backbone), self.num_labels)
        # A bound method, because in a deep copy of the model it belongs to the copy. It goes before all other hooks,
        # because those of transformers are already there and record the layer's output for the feature maps.
        layer.register_forward_hook(self._quantize_output, prepend=True)
        self._quantized: QuantizerOutput | None = None
        self._with_gradients = False
        self.supports_gradient_checkpointing = any(
            isinstance(module, GradientCheckpointingLayer) for module in self.backbone.modules()
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the first convolution of the backbone."""
        return self.backbone.get_submodule(self._first_convolution())

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the first convolution of the backbone."""
        self.backbone.set_submodule(self._first_convolution(), value)

    def _first_convolution(self) -> str:
        return next(name for name, module in self.backbone.named_modules() if isinstance(module, nn.Conv2d))

    def _quantize_output(self, layer: nn.Module, args: Any, output: Any) -> Any:
        """Replaces the chosen layer's output by its codes."""
        states, axis = _states(output), self.config.quantized_axis
        assert axis is not None
        if states.shape[axis] != self.config.quantized_size:
            raise ValueError(
                f"The output of `quantized_layer={self.config.quantized_layer!r}` has {states.shape[axis]} channels, "
                f"but the configuration says `quantized_size={self.config.quantized_size}`, which belongs to another "
                "layer. Set `quantized_size=None` to find it again."
            )
        quantized, out = self.quantize(states.movedim(axis, -1))
        # In a backward pass this is a recomputation of a checkpointed layer around this one. Nobody reads what that
        # keeps, so where the question would break a compiled graph it is not asked.
        if not self.training or torch.compiler.is_compiling() or not in_backward():
            self._quantized, self._with_gradients = out, torch.is_grad_enabled()
        return _with_states(output, quantized.movedim(-1, axis))

    @returns_tuples
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VQImageClassifierOutput:
        """Maps images to logits. With labels it computes the loss, too.

        Args:
            pixel_values: (batch, num_channels, height, width) in the configuration's `pixel_range`, in any floating
                dtype and in the size that the backbone takes.
            labels: int64 (batch,), in [0, num_labels). `config.problem_type` allows other kinds of labels, such as
                several for an image.

        Returns:
            [`VQImageClassifierOutput`]: The loss, the logits, and tokens and statistics of the quantized layer.

        Raises:
            ValueError: If the pixels have a wrong dtype, shape or range. Also if the quantized layer is a part of a
                layer that is checkpointed with `use_reentrant=True`, which would lose the commitment loss.
        """
        self._check_pixel_values(pixel_values)
        extras: Any = kwargs
        wanted = {}
        for name in ("output_hidden_states", "output_attentions"):
            asked = extras.pop(name, None)
            wanted[name] = getattr(self.config, name) if asked is None else asked
        outputs = self.backbone(pixel_values.to(self.dtype), **wanted, return_dict=True)
        out, self._quantized = self._quantized, None
        if out is None or out.loss is None:
            raise ValueError(
                "The backbone ran without its quantized layer, because another backbone replaced the one that this "
                "model made. Give the new one as `backbone_config`, and load its weights into `model.backbone`."
            )
        if torch.is_grad_enabled() and not self._with_gradients:
            raise ValueError(
                "The quantized layer ran without gradients, so the commitment loss would have none. Gradient "
                'checkpointing needs `gradient_checkpointing_kwargs={"use_reentrant": False}`, the default.'
            )
        logits = self.classifier(_pool(outputs))

        loss = classification_loss = None
        if labels is not None:
            classification_loss = self.loss_function(labels, logits, self.config, **extras)
            loss = classification_loss + self.config.commitment_weight * out.loss
        tokens, error = out.q, None
        if tokens is not None:
            assert out.z is not None and out.z_q is not None
            error = F.mse_loss(out.z_q.detach(), out.z.detach())
            batch = pixel_values.shape[0]  # of len(), an exported graph would make a constant
            if tokens.shape[0] != batch:
                tokens = tokens.reshape(batch, -1, tokens.shape[-1])
            tokens = tokens.squeeze(-1) if self.quantize.groups == 1 else tokens
        scalars = {}
        if self.training or labels is not None:
            scalars = {
                "commitment_loss": out.loss,
                "perplexity": out.perplexity,
                "usage": out.usage,
                "quantization_error": error,
            }
        return VQImageClassifierOutput(
            loss=loss,
            logits=logits,
            classification_loss=classification_loss,
            image_tokens=tokens,
            replaced=out.replaced,
            **scalars,
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
        )

    def _check_pixel_values(self, pixel_values: torch.Tensor) -> None:
        channels = self.config.num_channels
        require_floating_point(pixel_values, self.config.pixel_range)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"`pixel_values` must have the shape (batch, {channels}, height, width), "
                f"got {tuple(pixel_values.shape)}. VQImageProcessor(num_channels={channels}) converts images."
            )
        refuse_8_bit_values(pixel_values, self.config.pixel_range, self.training)


def _build_backbone(config: VQImageClassificationConfig) -> nn.Module:
    backbone_config = config.backbone_config
    if backbone_config is None:
        return AlexNet(config)
    if backbone_config.model_type == "vit":  # it has no AutoBackbone
        return AutoModel.from_config(backbone_config, add_pooling_layer=False)
    if backbone_config.model_type not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        raise ValueError(
            f"AutoBackbone has no model of the type {backbone_config.model_type!r}. Choose one of "
            f"{', '.join(sorted(MODEL_FOR_BACKBONE_MAPPING_NAMES))}, or 'vit'."
        )
    return AutoBackbone.from_config(backbone_config)


def _num_features(backbone: nn.Module) -> int:
    """Returns the number of channels of what `_pool` returns."""
    network: Any = backbone
    return network.channels[-1] if hasattr(network, "channels") else network.config.hidden_size


def _pool(outputs: Any) -> torch.Tensor:
    """Returns features (batch, channels): those of the class token, or the mean of the last feature map."""
    feature_maps = outputs.get("feature_maps")
    if feature_maps is None:
        return outputs.last_hidden_state[:, 0]
    features = feature_maps[-1]
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


def _find_layer(backbone: nn.Module, which: int | str | None) -> nn.Module:
    """Finds the layer that `quantized_layer` means."""
    # Take the first list of modules. In every backbone of transformers it holds the stages or the layers.
    name, blocks = next(
        ((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)), ("", None)
    )
    if isinstance(which, str):
        try:
            return backbone.get_submodule(which)
        except AttributeError:
            raise ValueError(
                f"`quantized_layer={which!r}` is no module of the backbone, whose blocks are {name}.0 and so on. "
                "Choose one of `backbone.named_modules()`."
            ) from None
    if not blocks:
        raise ValueError("The backbone has no list of blocks to count. Set `quantized_layer` to the name of a module.")
    number = len(blocks) // 2 - 1 if which is None else which
    if not -len(blocks) <= number < len(blocks):
        raise ValueError(
            f"`quantized_layer={which}` is out of range: the backbone's blocks are 0 to {len(blocks) - 1}."
        )
    return blocks[number]


def _output_layout(backbone: nn.Module, layer: nn.Module, config: VQImageClassificationConfig) -> tuple[int, int]:
    """Finds the number of channels of a layer's output and their axis by running a blank image.

    It also checks that the classifier's features depend on the layer.
    """
    found: list[torch.Tensor] = []

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        states = _states(output).detach().requires_grad_()
        found.append(states)
        return _with_states(output, states.clone())  # a clone may be changed in place

    hook = layer.register_forward_hook(replace, prepend=True)
    training = backbone.training
    backbone.eval()
    try:
        with torch.enable_grad():
            images = next(backbone.parameters()).new_zeros(
                1, config.num_channels, config.image_size, config.image_size
            )
            features = _pool(backbone(images))
            total = features.sum()
    finally:
        hook.remove()
        backbone.train(training)
    name = f"`quantized_layer={config.quantized_layer!r}`"
    if len(found) != 1:
        raise ValueError(f"{name} runs {len(found)} times for an image. Choose a layer that runs once.")
    if features.ndim != 2 or features.shape[1] != _num_features(backbone):
        raise ValueError(
            f"The backbone says that its features have {_num_features(backbone)} channels, but returns "
            f"{tuple(features.shape)} for an image. It cannot be used; choose another backbone."
        )
    states = found[0]
    seen = total.requires_grad and torch.autograd.grad(total, states, allow_unused=True)[0] is not None
    if not (seen or torch.is_inference_mode_enabled()):  # which records no graph
        raise ValueError(f"The backbone's features do not depend on the output of {name}. Choose an earlier layer.")
    axis = -1
    if states.ndim == 4:
        square_last, square_first = states.shape[2] == states.shape[3], states.shape[1] == states.shape[2]
        if square_last and square_first:  # as many channels as rows and columns
            axis = -1 if isinstance(layer, nn.Linear | nn.LayerNorm) else 1
        else:
            axis = -1 if square_first else 1
    return states.shape[axis], axis


def _states(output: Any) -> torch.Tensor:
    """Returns the hidden states in a layer's output: (batch, channels, h, w) or (batch, ..., channels)."""
    states = output
    while isinstance(states, tuple) and states:
        states = states[0]
    if not isinstance(states, torch.Tensor) or not 2 <= states.ndim <= 4:
        got = tuple(states.shape) if isinstance(states, torch.Tensor) else type(states).__name__
        raise ValueError(
            "The output of `quantized_layer` must be, or begin with, a tensor (batch, channels, height, width), "
            f"(batch, height, width, channels), (batch, tokens, channels) or (batch, channels), got {got}. Choose "
            "another layer."
        )
    return states


def _with_states(output: Any, states: torch.Tensor) -> Any:
    """Returns a layer's output with other hidden states."""
    return (_with_states(output[0], states), *output[1:]) if isinstance(output, tuple) else states


VQModelForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["VQImageClassifierOutput", "VQModelForImageClassification"]
