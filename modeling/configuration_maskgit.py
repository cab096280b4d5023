# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of the masked generative transformer."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_base_vq import HubConfig
from .configuration_vq import VQConfig

PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6},
    "small": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}
"""Sizes for [`MaskGitConfig.from_preset`]: those of Halton-MaskGIT, with heads that divide 512 for "small"."""


@strict
class MaskGitConfig(HubConfig):
    r"""Configuration of a [`MaskGitModel`]: its tokenizer, the transformer, and how it is trained.

    `MaskGitConfig.from_preset("base", vq_config=tokenizer.config, num_classes=1000)` is a class-conditional generator
    for the tokens of a [`VQModel`]. The sizes of the token grid and of the vocabulary are the tokenizer's.

    Args:
        vq_config ([`VQConfig`] or `dict`, *optional*): The tokenizer; `VQConfig()` by default.
        num_classes (`int`, defaults to 0): Classes of images; 0 for a generator without class labels.
        hidden_size (`int`, defaults to 768): Width of the transformer; a multiple of `num_attention_heads`.
        num_hidden_layers (`int`, defaults to 12): Layers, at least 1.
        num_attention_heads (`int`, defaults to 12): Heads; with rotary positions their width is a multiple of 4.
        intermediate_size (`int`, *optional*):
            Width of the SwiGLU layer; by default 8/3 of `hidden_size`, rounded up to a multiple of 64, which costs
            what an ordinary layer of four times the width would.
        norm_type (`"rmsnorm"` or `"layernorm"`, defaults to `"rmsnorm"`):
            Norm before each sub-layer and of queries and keys.
        position_type (`"learned"` or `"rotary"`, defaults to `"learned"`):
            One vector for each cell of the tokenizer's grid, or rotations by row and column, which serve grids of any
            size.
        class_conditioning (`"adaln_zero"` or `"prefix"`, defaults to `"adaln_zero"`):
            The class shifts, scales and gates every sub-layer (gates start at 0), or is a token before the image's.
        tie_word_embeddings (`bool`, defaults to `True`): Whether the head shares the token embeddings.
        dropout (`float`, defaults to 0.1): Rate for attention weights and outputs of sub-layers, in [0, 1).
        norm_eps (`float`, defaults to 1e-6): Added to variances, above 0.
        initializer_range (`float`, defaults to 0.02): Standard deviation of initial weights.
        mask_schedule (`"arccos"`, `"cosine"`, `"linear"` or `"square"`, defaults to `"arccos"`):
            Distribution of the share of tokens that training hides, see [`mask_ratio`].
        mask_count (`"exact"` or `"bernoulli"`, defaults to `"exact"`):
            Whether exactly that share is hidden, or each token with that probability; at least one token either way.
        class_dropout (`float`, defaults to 0.1):
            Probability, in [0, 1), that training replaces a class by the null class, which guidance needs.
        label_smoothing (`float`, defaults to 0.1):
            Share of the target that training spreads over all codes, in [0, 1). Off in eval mode.
        unmasked_loss_weight (`float`, defaults to 0.0):
            Weight of the visible tokens in the loss, in [0, 1]; 0 counts hidden tokens alone, 1 all alike.
    """

    model_type = "hf_maskgit"
    sub_configs_defaults = {"vq_config": VQConfig}  # type: ignore[dict-item]

    # Not `VQConfig`: code from the Hub and code of this package have a class of that name each.
    vq_config: Any = None
    num_classes: int = 0
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    position_type: Literal["learned", "rotary"] = "learned"
    class_conditioning: Literal["adaln_zero", "prefix"] = "adaln_zero"
    tie_word_embeddings: bool = True
    dropout: float | int = 0.1
    norm_eps: float = 1e-6
    initializer_range: float = 0.02

    mask_schedule: Literal["arccos", "cosine", "linear", "square"] = "arccos"
    mask_count: Literal["exact", "bernoulli"] = "exact"
    class_dropout: float | int = 0.1
    label_smoothing: float | int = 0.1
    unmasked_loss_weight: float | int = 0.0

    @classmethod
    def from_preset(cls, name: str, **fields: Any) -> "MaskGitConfig":
        """A configuration of a usual size.

        Args:
            name (`str`): `"tiny"`, `"small"`, `"base"` or `"large"`, see `PRESETS`.
            fields: Further fields, which may overrule the preset's.

        Raises:
            `ValueError`: for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"There is no preset {name!r}. Choose among {list(PRESETS)}.")
        return cls(**{**PRESETS[name], **fields})

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = -(-self.hidden_size * 8 // (3 * 64)) * 64
        kwargs.setdefault("num_labels", self.num_classes)
        super().__post_init__(**kwargs)

    @property
    def num_groups(self) -> int:
        """`int`: tokens at each cell of the grid."""
        return self.vq_config.num_groups

    @property
    def codebook_size(self) -> int:
        """`int`: codes that a token of one group may be; all of the tokenizer's, unless its groups share them out."""
        books = 1 if self.vq_config.share_codebook else self.vq_config.num_groups
        return self.vq_config.num_codes // books

    @property
    def grid_size(self) -> tuple[int, int]:
        """`tuple[int, int]`: rows and columns of tokens of an image of the tokenizer's `image_size`."""
        side = self.vq_config.image_size // self.vq_config.downsample_factor
        return side, side

    def validate_architecture(self) -> None:
        """Checks the transformer's fields against each other; run when a config is made and when it is saved."""
        super().validate_architecture()
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size`, got {self.num_attention_heads} heads and a width "
                f"of {self.hidden_size}."
            )
        if self.position_type == "rotary" and self.hidden_size // self.num_attention_heads % 4:
            raise ValueError(
                f'`position_type="rotary"` needs heads of a multiple of 4 channels, got '
                f"{self.hidden_size // self.num_attention_heads}: pairs of channels turn by row and by column."
            )
        if not self.norm_eps > 0:
            raise ValueError(f"`norm_eps` must be above 0, got {self.norm_eps}.")
        if not self.initializer_range >= 0:
            raise ValueError(f"`initializer_range` must be at least 0, got {self.initializer_range}.")

    def validate_training(self) -> None:
        """Checks the fields of the loss; run when a config is made and when it is saved."""
        if self.num_classes < 0:
            raise ValueError(f"`num_classes` must be at least 0, got {self.num_classes}.")
        for name in ("dropout", "class_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        if not 0 <= self.unmasked_loss_weight <= 1:
            raise ValueError(f"`unmasked_loss_weight` must be in [0, 1], got {self.unmasked_loss_weight}.")


MaskGitConfig.register_for_auto_class()

__all__ = ["PRESETS", "MaskGitConfig"]
