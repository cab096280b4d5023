# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of the masked generative transformer."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_base_vq import HubConfig
from .configuration_vq import VQConfig
from .limits_vq import refuse_impossible, require_weight

PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6},
    "small": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}
"""Sizes for [`MaskGitConfig.from_preset`]. They are those of Halton-MaskGIT, but "small" has heads that divide 512."""


@strict
class MaskGitConfig(HubConfig):
    r"""Configuration of a [`MaskGitModel`]: its tokenizer, its transformer, and how it is trained.

    `MaskGitConfig.from_preset("base", vq_config=tokenizer.config, num_classes=1000)` is a class-conditional generator
    for the tokens of a [`VQModel`]. The tokenizer sets the size of the token grid and of the vocabulary.

    Args:
        vq_config ([`VQConfig`] or `dict`, *optional*): Configuration of the tokenizer. The default is `VQConfig()`.
        num_classes: Number of image classes. 0 makes a generator without class labels.
        hidden_size: Width of the transformer, a multiple of `num_attention_heads`.
        num_hidden_layers: Number of layers, at least 1.
        num_attention_heads: Number of heads. With rotary positions the width of a head must be a multiple of 4.
        intermediate_size: Width of the SwiGLU layer. The default is 8/3 of `hidden_size`, rounded up to a multiple of
            64. That costs as much as an ordinary layer of four times the width.
        norm_type: `"rmsnorm"` or `"layernorm"`. Norm before each sub-layer, and of queries and keys.
        qk_norm: `"head"` or `"width"`. Whether queries and keys are normalized in each head, or over all heads.
        position_type: `"learned"` or `"rotary"`. `"learned"` has one vector for each cell of the tokenizer's grid.
            `"rotary"` rotates by row and column and works for grids of any size.
        class_conditioning: `"adaln_zero"` or `"prefix"`. With `"adaln_zero"` the class shifts, scales and gates every
            sub-layer, and the gates start at 0. With `"prefix"` the class is a token before the image's tokens.
        modulates_last_norm: Whether the class shifts and scales the output of the last norm, too. Only for
            `"adaln_zero"`.
        tie_word_embeddings: Whether the head shares the token embeddings.
        dropout: Dropout of attention weights and of sub-layer outputs, in [0, 1).
        norm_eps: Added to variances, above 0.
        initializer_range: Standard deviation of the initial weights.
        mask_schedule: `"arccos"`, `"cosine"`, `"linear"` or `"square"`. Distribution of the share of tokens that
            training hides, see [`mask_ratio`].
        mask_count: `"exact"` or `"bernoulli"`. `"exact"` hides exactly that share, `"bernoulli"` hides each token with
            that probability. Both hide at least one token.
        class_dropout: Probability, in [0, 1), that training replaces a class by the null class. Guidance needs this.
        label_smoothing: Share of the target that training spreads over all codes, in [0, 1). Eval mode does not
            smooth.
        unmasked_loss_weight: Weight of the visible tokens in the loss, in [0, 1]. With 0 only hidden tokens count,
            with 1 all count alike.
    """

    model_type = "hf_maskgit"
    sub_configs = {"vq_config": VQConfig}  # type: ignore[assignment]
    sub_configs_defaults = {"vq_config": VQConfig}  # type: ignore[dict-item]  # its name since transformers 5.20

    # Not `VQConfig`, because code from the Hub and this package each have a class of that name.
    vq_config: Any = None
    num_classes: int = 0
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    qk_norm: Literal["head", "width"] = "head"
    position_type: Literal["learned", "rotary"] = "learned"
    class_conditioning: Literal["adaln_zero", "prefix"] = "adaln_zero"
    modulates_last_norm: bool = False
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
        """Makes a configuration of a usual size.

        Args:
            name: `"tiny"`, `"small"`, `"base"` or `"large"`, see `PRESETS`.
            fields: Further fields. They override those of the preset.

        Returns:
            [`MaskGitConfig`]: The configuration.

        Raises:
            ValueError: If there is no preset of that name.
        """
        if name not in PRESETS:
            raise ValueError(f"There is no preset {name!r}. Choose among {list(PRESETS)}.")
        return cls(**{**PRESETS[name], **fields})

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_impossible({"num_classes": self.num_classes})  # transformers makes a name for each
        if self.intermediate_size is None:
            self.intermediate_size = -(-self.hidden_size * 8 // (3 * 64)) * 64
        kwargs.setdefault("num_labels", self.num_classes)
        super().__post_init__(**kwargs)

    def _build_nested(self) -> None:
        if self.vq_config is None or isinstance(self.vq_config, dict):
            self.vq_config = VQConfig(**(self.vq_config or {}))

    @property
    def num_groups(self) -> int:
        """`int`: Number of tokens at each cell of the grid."""
        return self.vq_config.num_groups

    @property
    def codebook_size(self) -> int:
        """`int`: Number of codes that a token of one group can be.

        These are all codes of the tokenizer, unless its groups have separate codebooks.
        """
        books = 1 if self.vq_config.share_codebook else self.vq_config.num_groups
        return self.vq_config.num_codes // books

    @property
    def grid_size(self) -> tuple[int, int]:
        """`tuple[int, int]`: Rows and columns of tokens of an image of the tokenizer's `image_size`."""
        side = self.vq_config.image_size // self.vq_config.downsample_factor
        return side, side

    def validate_architecture(self) -> None:
        """Checks the transformer's fields against each other. It runs when a config is made and when it is saved."""
        super().validate_architecture()
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        assert self.intermediate_size is not None
        rows, columns = self.grid_size
        positions = rows * columns if self.position_type == "learned" else 1
        for fields, entries in {
            "`num_codes`": self.codebook_size,
            "`num_classes`": self.num_classes + 1,
            "the tokenizer's `image_size`": positions,
            "`intermediate_size`": 2 * (self.intermediate_size or 0),
        }.items():
            require_weight(f"{fields} and `hidden_size`", entries, self.hidden_size)
        require_weight("`hidden_size`", 6, self.hidden_size, self.hidden_size)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size`, got {self.num_attention_heads} heads and a width "
                f"of {self.hidden_size}."
            )
        if self.position_type == "rotary" and self.hidden_size // self.num_attention_heads % 4:
            raise ValueError(
                f'`position_type="rotary"` needs heads of a multiple of 4 channels, got '
                f"{self.hidden_size // self.num_attention_heads}. Pairs of channels turn by row and by column."
            )
        if self.modulates_last_norm and self.class_conditioning != "adaln_zero":
            raise ValueError(
                '`modulates_last_norm` needs `class_conditioning="adaln_zero"`, got '
                f"{self.class_conditioning!r}, where the class is a token."
            )
        if not self.norm_eps > 0:
            raise ValueError(f"`norm_eps` must be above 0, got {self.norm_eps}.")
        if not self.initializer_range >= 0:
            raise ValueError(f"`initializer_range` must be at least 0, got {self.initializer_range}.")

    def validate_training(self) -> None:
        """Checks the fields of the loss. It runs when a config is made and when it is saved."""
        if self.num_classes < 0:
            raise ValueError(f"`num_classes` must be at least 0, got {self.num_classes}.")
        for name in ("dropout", "class_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        if not 0 <= self.unmasked_loss_weight <= 1:
            raise ValueError(f"`unmasked_loss_weight` must be in [0, 1], got {self.unmasked_loss_weight}.")


MaskGitConfig.register_for_auto_class()

__all__ = ["PRESETS", "MaskGitConfig"]
