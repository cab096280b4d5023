# Copyright 2026 The hf_vq authors.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
"""VQModel: an image autoencoder whose latents are codes.

    pixels -encoder-> latents -quant_conv-> vectors -quantize-> codes -post_quant_conv-> latents -decoder-> pixels

`encode` gives the ids of the codes (`image_tokens`), `decode` turns ids into pixels, `forward` does both and computes
the loss. In eval mode `decode(encode(x).image_tokens)` equals the reconstruction of `forward` bit for bit in float32.
"""

import copy
import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .autoencoder_vq import (
    SQVAEDecoder,
    SQVAEEncoder,
    SQVAEResBlock,
    VQGANAttentionBlock,
    VQGANDecoder,
    VQGANEncoder,
    VQGANResnetBlock,
)
from .base_quantizer_vq import Quantizer, get_vq_layers
from .batch_norm_vq import BatchNorm1d
from .codebook_vq import Codebook
from .configuration_vq import VQConfig
from .limits_vq import WeightsFirstMixin
from .magvit_vq import MAGVITDecoder, MAGVITEncoder, MAGVITStyleNorm
from .old_checkpoints_vq import OldCheckpointMixin
from .outputs_vq import VQDecoderOutput, VQEncoderOutput, VQModelOutput, captures_outputs, returns_tuples
from .pipeline_vq import CUSTOM_PIPELINES
from .pixel_range_vq import refuse_8_bit_values, require_floating_point
from .quantizers_vq import build_quantizer

_NETWORKS: dict[str, tuple[Any, Any]] = {
    "vqgan": (VQGANEncoder, VQGANDecoder),
    "magvit2": (MAGVITEncoder, MAGVITDecoder),
    "sqvae": (SQVAEEncoder, SQVAEDecoder),
}
_Model = TypeVar("_Model", bound="VQPreTrainedModel")


class VQPreTrainedModel(OldCheckpointMixin, WeightsFirstMixin, PreTrainedModel):
    """What models around a VQ autoencoder share: weight initialization, freezing and what transformers has to know."""

    config: VQConfig
    base_model_prefix = "vq"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["VQGANResnetBlock", "VQGANAttentionBlock", "SQVAEResBlock"]  # quantizers add themselves
    # Nearest codes in half precision are often not the nearest.
    _keep_in_fp32_modules_strict = ["quantize"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": [VQGANResnetBlock, SQVAEResBlock],
        "attentions": VQGANAttentionBlock,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Codebook | Quantizer):
            module.reset_parameters()
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            # PyTorch's own default, with which both backbones were published; the base class would take N(0, 0.02).
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.weight[0].numel())
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, MAGVITStyleNorm):  # it starts as a plain group norm
            for layer in (module.gamma, module.beta):
                init.zeros_(layer.weight)
                init.zeros_(layer.bias)
            init.ones_(module.gamma.bias)
        elif isinstance(module, BatchNorm1d):  # the base class would reset a count of batches, which this has not
            assert module.running_mean is not None and module.running_var is not None
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        else:
            super()._init_weights(module)

    def freeze_codebook(self) -> None:
        """Keeps the codes as they are while the rest of the model trains; `requires_grad_(True)` thaws them.

        Call it before a trainer is made, which gives its optimizer the parameters that require a gradient.
        """
        for layer in get_vq_layers(self):
            layer.freeze()

    def requires_grad_(self: _Model, requires_grad: bool = True) -> _Model:
        """As of every module; freezes or thaws quantizer layers without parameters as well."""
        super().requires_grad_(requires_grad)
        for layer in get_vq_layers(self):
            layer.requires_grad_(requires_grad)
        return self


class VQModel(VQPreTrainedModel):
    r"""Vector-quantized image autoencoder.

    Args:
        config ([`VQConfig`]): architecture, quantizer and loss.

    Example:

    ```python
    >>> import torch
    >>> model = VQModel(VQConfig(architecture="sqvae", image_size=32, base_channels=64)).eval()
    >>> pixel_values = torch.rand(2, 3, 32, 32) * 2 - 1
    >>> image_tokens = model.encode(pixel_values).image_tokens
    >>> image_tokens.shape
    torch.Size([2, 8, 8])
    >>> model.decode(image_tokens).decoded_pixel_values.shape
    torch.Size([2, 3, 32, 32])
    ```
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        # `dtype` of the model is that of its first parameter: an encoder's, not the quantizer's, which stays float32.
        encoder, decoder = _NETWORKS[config.architecture]
        self.encoder: Any = encoder(config)
        self.decoder: Any = decoder(config)
        is_sqvae = config.architecture == "sqvae"
        latent_channels = config.base_channels if is_sqvae else config.latent_channels
        has_projections = not is_sqvae or config.embed_dim != config.base_channels
        self.quantize = build_quantizer(config)
        self.quant_conv: nn.Module = nn.Identity()
        self.post_quant_conv: nn.Module = nn.Identity()
        if has_projections:
            self.quant_conv = nn.Conv2d(latent_channels, config.embed_dim, 1)
            self.post_quant_conv = nn.Conv2d(config.embed_dim, latent_channels, 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution of the encoder."""
        return self.encoder.conv[0] if isinstance(self.encoder, SQVAEEncoder) else self.encoder.conv_in

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the first convolution of the encoder."""
        if isinstance(self.encoder, SQVAEEncoder):
            self.encoder.conv[0] = value
        else:
            self.encoder.conv_in = value

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As every model's; what is saved brings the pipeline "image-tokenization" along."""
        self.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)  # transformers writes into it
        super().save_pretrained(*args, **kwargs)

    @captures_outputs
    def encode(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> VQEncoderOutput:
        """Images to tokens.

        Args:
            pixel_values: (batch, num_channels, height, width) in the configuration's `pixel_range`, any floating
                dtype; the downsample factor must divide height and width.

        Returns:
            [`VQEncoderOutput`]: tokens, the codes they stand for, and statistics of the quantizer.

        Raises:
            `ValueError`: if the dtype or the shape is another, or for values of 0 to 255.
        """
        return self._encode(pixel_values, **kwargs)

    @returns_tuples
    def decode(
        self,
        image_tokens: torch.Tensor | None = None,
        quantized_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VQDecoderOutput:
        """Tokens, or codes, to images. Exactly one of the two must be given.

        Args:
            image_tokens: Ids in [0, num_codes), any integer dtype: (batch, h, w), or (batch, h, w, groups) for
                a quantizer with more than one group. Of a residual quantizer the first levels are enough: the codes
                that they stand for are coarser.
            quantized_states: (batch, embed_dim, h, w).

        Returns:
            [`VQDecoderOutput`]: pixels (batch, num_channels, f * h, f * w), f being the downsample factor. They may
            exceed `pixel_range` a little.

        Raises:
            `ValueError`: if both or none are given, or for a wrong dtype, a wrong shape, an id out of range.
        """
        if image_tokens is not None and quantized_states is None:
            quantized_states = self.get_codebook_entry(image_tokens)
        elif image_tokens is not None or quantized_states is None:
            raise ValueError("Pass exactly one of `image_tokens` and `quantized_states` to `decode`.")
        elif quantized_states.ndim != 4 or quantized_states.shape[1] != self.config.embed_dim:
            raise ValueError(
                f"`quantized_states` must have the shape (batch, {self.config.embed_dim}, height, width), "
                f"got {tuple(quantized_states.shape)}."
            )
        return VQDecoderOutput(decoded_pixel_values=self._decode(quantized_states, **kwargs))

    def get_codebook_entry(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """The codes that tokens stand for.

        Args:
            image_tokens: int64. As for [`~VQModel.decode`].

        Returns:
            `torch.FloatTensor`: (batch, embed_dim, h, w) in float32.

        Raises:
            `ValueError`: for a dtype that is no integer's, a wrong shape, or an id out of range.
        """
        groups = self.quantize.groups
        dtype = image_tokens.dtype
        if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
            raise ValueError(f"`image_tokens` must be integers, got {dtype}. For vectors use `quantized_states`.")
        if groups == 1 and image_tokens.ndim != 3:
            raise ValueError(
                f"`image_tokens` must have the shape (batch, height, width), got {tuple(image_tokens.shape)}. "
                "Reshape a flat sequence of tokens to its grid."
            )
        fewest = self.quantize.fewest_ids
        if groups > 1 and (image_tokens.ndim != 4 or not fewest <= image_tokens.shape[-1] <= groups):
            last = groups if fewest == groups else f"{fewest} to {groups}"
            raise ValueError(
                f"`image_tokens` must have the shape (batch, height, width, {last}) for {groups} groups, "
                f"got {tuple(image_tokens.shape)}."
            )
        image_tokens = image_tokens.long()
        return self.quantize.lookup(image_tokens.unsqueeze(-1) if groups == 1 else image_tokens)

    @captures_outputs
    def forward(
        self,
        pixel_values: torch.Tensor,
        return_loss: bool | None = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VQModelOutput:
        """Images to tokens and back, with the loss.

        Args:
            pixel_values: As for [`~VQModel.encode`].
            return_loss: Whether to compute `loss` and `reconstruction_loss`.

        Returns:
            [`VQModelOutput`]: losses, reconstruction, tokens and statistics of the quantizer.

        Raises:
            `ValueError`: if the dtype or the shape of the pixels is another, or for values of 0 to 255.
        """
        encoded = self._encode(pixel_values, **kwargs)
        decoded = self._decode(encoded.quantized_last_hidden_state, **kwargs)
        loss = reconstruction_loss = None
        if return_loss:
            dtype = torch.promote_types(decoded.dtype, torch.float32)
            low, high = self.config.pixel_range
            difference = (decoded.to(dtype) - pixel_values.to(dtype)) / (high - low)
            reconstruction_loss = (
                difference.abs().mean() if self.config.reconstruction_loss == "l1" else difference.square().mean()
            )
            loss = reconstruction_loss + self.config.commitment_weight * encoded.commitment_loss
        return VQModelOutput(
            loss=loss,
            reconstruction_loss=reconstruction_loss,
            commitment_loss=encoded.commitment_loss,
            decoded_pixel_values=decoded,
            image_tokens=encoded.image_tokens,
            perplexity=encoded.perplexity,
            usage=encoded.usage,
            quantization_error=encoded.quantization_error,
            replaced=encoded.replaced,
        )

    def _encode(self, pixel_values: torch.Tensor, **kwargs: Any) -> VQEncoderOutput:
        self.check_pixel_values(pixel_values)
        pixel_values = _in_fast_layout(pixel_values.to(self.dtype))
        latents = self.quant_conv(self.encoder(pixel_values, **kwargs))
        quantized, out = self.quantize(latents)
        tokens = out.q
        if tokens is not None and self.quantize.groups == 1:
            tokens = tokens.squeeze(-1)
        error = None if tokens is None else F.mse_loss(out.z_q.detach(), out.z.detach())
        return VQEncoderOutput(
            image_tokens=tokens,
            quantized_last_hidden_state=quantized,
            last_hidden_state=latents,
            commitment_loss=out.loss,
            perplexity=out.perplexity,
            usage=out.usage,
            quantization_error=error,
            replaced=out.replaced,
        )

    def _decode(self, quantized_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        # One memory layout for all codes, since convolutions round differently in another.
        quantized_states = _in_fast_layout(quantized_states.to(self.dtype))
        return self.decoder(self.post_quant_conv(quantized_states), **kwargs)

    def check_pixel_values(self, pixel_values: torch.Tensor) -> None:
        """Raises a `ValueError` that tells what is wrong if `encode` does not take these pixels."""
        channels, factor = self.config.num_channels, self.config.downsample_factor
        require_floating_point(pixel_values, self.config.pixel_range)
        if pixel_values.ndim != 4:
            raise ValueError(
                f"`pixel_values` must have the shape (batch, {channels}, height, width), "
                f"got {tuple(pixel_values.shape)}. A single image needs `unsqueeze(0)`."
            )
        if pixel_values.shape[1] != channels:
            raise ValueError(
                f"This model takes images of {channels} channels, got {pixel_values.shape[1]} in `pixel_values` of "
                f"shape {tuple(pixel_values.shape)}. VQImageProcessor(num_channels={channels}) converts images."
            )
        height, width = pixel_values.shape[2:]
        if height % factor or width % factor or 0 in (height, width):
            raise ValueError(
                f"Height and width of `pixel_values` must be multiples of {factor}, the pixels per token, "
                f"got {height} x {width}. Crop or resize the images, to {max(height // factor, 1) * factor} x "
                f"{max(width // factor, 1) * factor} for example."
            )
        refuse_8_bit_values(pixel_values, self.config.pixel_range, self.training)


def _in_fast_layout(images: torch.Tensor) -> torch.Tensor:
    """Channels last on a CPU, where convolutions are then faster. Elsewhere the layout of the weights decides."""
    on_cpu = images.device.type == "cpu"
    return images.contiguous(memory_format=torch.channels_last if on_cpu else torch.contiguous_format)


VQModel.register_for_auto_class("AutoModel")

__all__ = ["VQDecoderOutput", "VQEncoderOutput", "VQModel", "VQModelOutput", "VQPreTrainedModel"]
