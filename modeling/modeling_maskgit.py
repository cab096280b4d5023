# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""MaskGitModel: a bidirectional transformer that fills in the hidden tokens of an image.

    tokens, some hidden -embed-> states -layers-> states -head-> logits of every token

The tokenizer is part of the model, and it is frozen. `forward` hides random tokens and returns the loss of guessing
them. `generate` (generation_maskgit.py) starts from hidden tokens and makes images.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_maskgit import MaskGitConfig
from .configuration_quantizer_vq import QuantizerConfig
from .configuration_vq import VQConfig
from .generation_maskgit import MaskGitGenerationMixin
from .limits_vq import WeightsFirstMixin
from .masking_maskgit import draw_mask, draw_uniform, mask_ratio
from .modeling_vq import VQModel
from .old_checkpoints_vq import OldCheckpointMixin
from .outputs_vq import ShortOutput, captures_outputs
from .pipeline_maskgit import CUSTOM_PIPELINES
from .transformer_maskgit import MaskGitAttention, MaskGitLayer, MaskGitModulation, MaskGitTransformer


@dataclass(repr=False)
class MaskGitOutput(ShortOutput):
    r"""What [`MaskGitModel.forward`] returns.

    Args:
        loss: Scalar. Cross entropy, in nats per token, of the hidden tokens. Visible tokens count with the weight
            `unmasked_loss_weight`. `None` with `return_loss=False`.
        logits: (batch, h, w, codebook_size), or (batch, h, w, groups, codebook_size) with more than one group. There
            is no logit for the mask, because it cannot be drawn. With separate codebooks, the first logit of group g
            is for the id g * codebook_size.
        image_tokens: int64. The tokens to guess, (batch, h, w) or (batch, h, w, groups).
        mask: Boolean. True where a token was hidden. Same shape as `image_tokens`.
        hidden_states: With `output_hidden_states=True`: the input of each layer and the last output, each (batch, 1 +
            h * w, hidden_size). The first position is the class or register token.
        attentions: With `output_attentions=True` and eager attention: weights (batch, heads, 1 + h * w, 1 + h * w).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor = None  # type: ignore[assignment]
    image_tokens: torch.Tensor = None  # type: ignore[assignment]
    mask: torch.Tensor = None  # type: ignore[assignment]
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class MaskGitPreTrainedModel(OldCheckpointMixin, WeightsFirstMixin, MaskGitGenerationMixin, PreTrainedModel):
    """What transformers needs to know of a [`MaskGitModel`], and how its weights are initialized.

    The generation mixin stands here and not at `MaskGitModel`, where its name would announce a `generation_config`.
    Under another name, transformers would add its own mixin to classes from the Hub.
    """

    config: MaskGitConfig
    base_model_prefix = "maskgit"
    main_input_name = "image_tokens"
    input_modalities = ["image"]
    output_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["MaskGitLayer", *VQModel._no_split_modules]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": MaskGitLayer, "attentions": MaskGitAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MaskGitModulation):
            # A zero gate makes every layer the identity at first.
            init.zeros_(module.weight)
            init.zeros_(module.bias)
            return
        super()._init_weights(module)
        if isinstance(module, MaskGitTransformer):
            for parameter in (module.mask_embedding, module.register, module.position_embedding):
                if parameter is not None:
                    init.normal_(parameter, std=self.config.initializer_range)


class MaskGitModel(MaskGitPreTrainedModel):
    r"""Masked generative image transformer with its tokenizer.

    Args:
        config ([`MaskGitConfig`]): Configuration of tokenizer, transformer and loss.
        tokenizer ([`VQModel`], *optional*):
            A trained tokenizer. The model copies its weights. Its config must equal `config.vq_config`. Without it,
            the tokenizer has random weights until you load a checkpoint.

    Raises:
        ValueError: If the tokenizer's config differs from `config.vq_config`.
    Example:

    ```python
    >>> tokenizer = VQModel.from_pretrained("user/vq-emoji")
    >>> config = MaskGitConfig.from_preset("tiny", vq_config=tokenizer.config, num_classes=10)
    >>> model = MaskGitModel(config, tokenizer=tokenizer)
    >>> loss = model(image_tokens=image_tokens, class_labels=class_labels).loss  # hides random tokens
    >>> images = model.eval().generate(class_labels=[3, 3, 7], guidance_scale=3.0).images
    ```
    """

    _tied_weights_keys = {"head.weight": "transformer.embed_tokens.weight"}

    def __init__(self, config: MaskGitConfig, tokenizer: VQModel | None = None) -> None:
        super().__init__(config)
        if tokenizer is not None:
            _check_tokenizer(config, tokenizer)
        self.transformer = MaskGitTransformer(config)
        self.head = nn.Linear(config.hidden_size, config.num_groups * config.codebook_size)
        self.tokenizer = VQModel(config.vq_config)
        self.post_init()
        if tokenizer is not None:
            self.tokenizer.load_state_dict(tokenizer.state_dict())
        self.train()

    def train(self, mode: bool = True) -> "MaskGitModel":
        """Sets training or eval mode. The tokenizer stays frozen and in eval mode.

        Freezing belongs here, because `from_pretrained` makes all weights trainable and calls `eval()` at its end.
        """
        super().train(mode)
        self.tokenizer.requires_grad_(False).eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embeddings of the tokens, group after group."""
        return self.transformer.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embeddings of the tokens."""
        self.transformer.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """Returns the head."""
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the head."""
        self.head = new_embeddings

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves the model like any other, and adds the pipeline "image-generation" to what is saved."""
        self.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)  # transformers writes into it
        super().save_pretrained(*args, **kwargs)

    @captures_outputs
    def forward(
        self,
        image_tokens: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        return_loss: bool | None = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskGitOutput:
        """Hides tokens and guesses them. Pass exactly one of `image_tokens` and `pixel_values`.

        Training mode drops classes (`class_dropout`) and smooths targets (`label_smoothing`). In eval mode the loss
        is the plain cross entropy.

        Args:
            image_tokens: Ids of the tokenizer, in any integer dtype: (batch, h, w), or (batch, h, w, groups)
                with more than one group. h and w are the config's `grid_size`. With rotary positions they can be
                anything.
            pixel_values: Images for the tokenizer, as for [`VQModel.encode`].
            class_labels: int64 (batch,), values in [0, num_classes), or -1 for an image of no class. Without labels
                no image has a class.
            mask: Boolean. True where a token is hidden: (batch, h, w), or (batch, h, w, groups) with more than one
                group. Without it, the model draws one as `mask_schedule` and `mask_count` say, in eval mode too.
            generator: Source of the random mask and of the dropped classes.
            return_loss: Whether to compute `loss`.

        Returns:
            [`MaskGitOutput`]: The loss, the logits, and what was hidden.

        Raises:
            ValueError: If a shape or dtype is wrong, or if ids or labels are out of range. Training on an accelerator
                does not check ranges, because the check would have to wait for the device.
        """
        if (image_tokens is None) == (pixel_values is None):
            raise ValueError("Pass exactly one of `image_tokens` and `pixel_values`.")
        if pixel_values is not None:
            image_tokens = self.encode(pixel_values)
        assert image_tokens is not None
        tokens = self._to_local(image_tokens)
        batch = tokens.shape[0]  # of len(), an exported graph would make a constant
        labels = self._to_labels(class_labels, batch, tokens.device)
        if mask is None:
            progress = draw_uniform((batch,), generator, tokens.device)
            ratio = mask_ratio(progress, self.config.mask_schedule)
            mask = draw_mask(tuple(image_tokens.shape), ratio, self.config.mask_count, generator, tokens.device)
        elif mask.shape != image_tokens.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"`mask` must be booleans of the tokens' shape {tuple(image_tokens.shape)}, True where a token is "
                f"hidden, got {mask.dtype} of shape {tuple(mask.shape)}."
            )
        if self.training and self.config.class_dropout > 0:
            dropped = draw_uniform(tuple(labels.shape), generator, labels.device) < self.config.class_dropout
            labels = labels.masked_fill(dropped, self.config.num_classes)

        hidden_states = self.transformer(tokens, mask.view(tokens.shape), labels, **kwargs)
        logits = self.head(hidden_states).view(*image_tokens.shape, self.config.codebook_size)
        loss = self._loss(logits, tokens, mask) if return_loss else None
        return MaskGitOutput(loss=loss, logits=logits, image_tokens=image_tokens.long(), mask=mask)

    def _loss(self, logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(
            logits.flatten(0, -2).float(),
            tokens.flatten(),
            reduction="none",
            label_smoothing=self.config.label_smoothing if self.training else 0.0,
        )
        weights = torch.where(mask.flatten(), 1.0, float(self.config.unmasked_loss_weight))
        return (losses * weights).sum() / weights.sum().clamp(min=1e-8)

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Turns images into the tokenizer's tokens, without gradients.

        Args:
            pixel_values: Images, as for [`VQModel.encode`].

        Returns:
            `torch.LongTensor`: (batch, h, w), or (batch, h, w, groups) with more than one group.

        Raises:
            ValueError: If quantization is off (`no_vq`).
        """
        tokens = self.tokenizer.encode(pixel_values).image_tokens
        if tokens is None:
            raise ValueError("The tokenizer gives no tokens under `no_vq`. Call the model outside of it.")
        return tokens

    def _to_local(self, image_tokens: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Maps ids to (batch, h, w, groups), counted from 0 in each group. It does not read `hidden` ones."""
        config = self.config
        groups, dtype = config.num_groups, image_tokens.dtype
        if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
            raise ValueError(f"`image_tokens` must be integers, got {dtype}. Pass images as `pixel_values`.")
        if image_tokens.ndim != (3 if groups == 1 else 4) or (groups > 1 and image_tokens.shape[-1] != groups):
            shape = "(batch, h, w)" if groups == 1 else f"(batch, h, w, {groups})"
            raise ValueError(
                f"`image_tokens` must have the shape {shape}, got {tuple(image_tokens.shape)}. Reshape a flat "
                "sequence of tokens to its grid."
            )
        if config.position_type == "learned" and tuple(image_tokens.shape[1:3]) != config.grid_size:
            raise ValueError(
                f"This model is made for grids of {config.grid_size[0]} x {config.grid_size[1]} tokens, got "
                f"{image_tokens.shape[1]} x {image_tokens.shape[2]}. The tokens come from images of another size or "
                'from another tokenizer. Only `position_type="rotary"` accepts any grid.'
            )
        tokens = image_tokens.long().reshape(*image_tokens.shape[:3], groups) - self._first_ids(image_tokens.device)
        if hidden is not None:
            tokens = tokens.masked_fill(hidden.reshape(tokens.shape), 0)
        if self._checks_range(tokens) and not ((tokens >= 0) & (tokens < config.codebook_size)).all():
            raise ValueError(
                f"`image_tokens` holds ids that this model's tokenizer does not have: it has {groups} x "
                f"{config.codebook_size} codes, the ids are {image_tokens.min()} to {image_tokens.max()}. Use tokens "
                "of the tokenizer that the model was made with."
            )
        return tokens

    def _to_global(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps (batch, h, w, groups), counted from 0 in each group, to the tokenizer's ids."""
        tokens = tokens + self._first_ids(tokens.device)
        return tokens.squeeze(-1) if self.config.num_groups == 1 else tokens

    def _first_ids(self, device: torch.device) -> torch.Tensor:
        stride = 0 if self.config.vq_config.share_codebook else self.config.codebook_size
        return torch.arange(self.config.num_groups, device=device) * stride

    def _to_labels(self, class_labels: torch.Tensor | None, batch: int, device: torch.device) -> torch.Tensor:
        """Returns class labels (batch,). Images without a class get the null class."""
        num_classes = self.config.num_classes
        if class_labels is None:
            return torch.full((batch,), num_classes, device=device)
        if num_classes == 0:
            raise ValueError("This model has no classes (`num_classes=0`). Leave `class_labels` out.")
        if class_labels.dtype.is_floating_point or class_labels.dtype == torch.bool or class_labels.shape != (batch,):
            raise ValueError(
                f"`class_labels` must be integers of the shape ({batch},), got {class_labels.dtype} of shape "
                f"{tuple(class_labels.shape)}."
            )
        labels = class_labels.long()
        if self._checks_range(labels) and not ((labels >= -1) & (labels < num_classes)).all():
            raise ValueError(
                f"`class_labels` must be in [0, {num_classes}), or -1 for an image of no class, got {labels.min()} to "
                f"{labels.max()}."
            )
        return labels.masked_fill(labels == -1, num_classes)

    def _checks_range(self, values: torch.Tensor) -> bool:
        # Reading the values makes an accelerator wait, in every training step.
        return (values.device.type == "cpu" or not self.training) and not torch.compiler.is_compiling()


def _check_tokenizer(config: MaskGitConfig, tokenizer: VQModel) -> None:
    """Raises a `ValueError` that names the fields in which the tokenizer's config differs from `vq_config`."""
    different = {
        name: (getattr(tokenizer.config, name), getattr(config.vq_config, name))
        for name in (*VQConfig.__annotations__, *QuantizerConfig.__annotations__)
        if getattr(tokenizer.config, name) != getattr(config.vq_config, name)
    }
    if different:
        differences = ", ".join(
            f"{name} is {is_} instead of {should_be}" for name, (is_, should_be) in different.items()
        )
        raise ValueError(
            f"The tokenizer does not match `config.vq_config`: {differences}. Make the config with "
            "`MaskGitConfig(vq_config=tokenizer.config, ...)`."
        )


MaskGitModel.register_for_auto_class("AutoModel")

__all__ = ["MaskGitModel", "MaskGitOutput", "MaskGitPreTrainedModel"]
