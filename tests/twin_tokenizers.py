"""A tokenizer in both ranges of pixels: two networks that see and paint the same pictures."""

from __future__ import annotations

import copy
from typing import Any

import torch

from hf_vq import VQConfig, VQModel
from hf_vq.modeling.autoencoder_vq import VQGANDecoder, VQGANEncoder

TINY: dict[str, Any] = {
    "image_size": 16,
    "base_channels": 8,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 8,
    "embed_dim": 4,
    "num_codes": 16,
    "norm_num_groups": 32,
    "kmeans_init": False,
    "replace_freq": 0,
}


def twin_tokenizers(**fields: Any) -> tuple[VQModel, VQModel]:
    """The same tokenizer for pixels in [-1, 1] and in [0, 1], in eval mode.

    What leads from one range to the other is folded into the first and the last convolution. The first has nothing but
    its middle tap, since the zeros around an image are gray in one range and black in the other.
    """
    torch.manual_seed(0)
    signed = VQModel(VQConfig(**TINY | fields)).eval()
    assert isinstance(signed.encoder, VQGANEncoder) and isinstance(signed.decoder, VQGANDecoder)
    with torch.no_grad():
        first, last = signed.encoder.conv_in, signed.decoder.conv_out
        middle = first.weight[:, :, 1:2, 1:2].clone()
        first.weight.zero_()[:, :, 1:2, 1:2] = middle
        last.weight.mul_(3)  # pictures with contrast, some levels beyond black and white
        vectors = signed.encode(torch.rand(16, 3, 16, 16) * 2 - 1).last_hidden_state.movedim(1, -1).flatten(0, -2)
        signed.quantize.codebook.weight.copy_(vectors[:: len(vectors) // 16][:16])  # codes where the vectors are
        unit = VQModel(VQConfig(**TINY | fields, pixel_range=[0.0, 1.0])).eval()
        unit.load_state_dict(copy.deepcopy(signed.state_dict()))
        assert isinstance(unit.encoder, VQGANEncoder) and isinstance(unit.decoder, VQGANDecoder)
        assert unit.encoder.conv_in.bias is not None and unit.decoder.conv_out.bias is not None
        unit.encoder.conv_in.weight.mul_(2)
        unit.encoder.conv_in.bias.sub_(middle.sum((1, 2, 3)))
        unit.decoder.conv_out.weight.div_(2)
        unit.decoder.conv_out.bias.add_(1).div_(2)
    return signed, unit
