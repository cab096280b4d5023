"""Cards of tokenizers: what one makes of an image, how it was made, what was measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hf_vq.cards.base import Facts, Metric, Slots, card, loading
from hf_vq.metrics import lpips
from hf_vq.metrics.reconstruction import IMAGE_METRICS
from hf_vq.modeling.quantizers_vq import QUANTIZERS

if TYPE_CHECKING:
    from hf_vq.modeling.configuration_quantizer_vq import QuantizerConfig
    from hf_vq.modeling.configuration_vq import VQConfig

METRICS = {
    **{key: Metric(key, metric.title, metric.format) for key, metric in IMAGE_METRICS.items()},
    lpips.LPIPS: Metric(lpips.LPIPS, lpips.TITLE, lpips.FORMAT),
    "rfid": Metric("rfid", "rFID", "{:.2f}"),
    "quantization_error": Metric("quantization_error", "Quantization error (mean squared, per dimension)", "{:.4g}"),
    "usage": Metric("codebook_usage", "Codes in use", "{:.1%}", counted="active_codes"),
    "perplexity": Metric("codebook_perplexity", "Codebook perplexity", "{:,.1f}"),
}
_NETWORKS = {
    "vqgan": "VQGAN-style encoder and decoder",
    "magvit2": "Open-MAGVIT2 encoder and decoder",
    "sqvae": "SQ-VAE encoder and decoder",
}
_CODE = """import torch
{model_info}from PIL import Image
from transformers import AutoImageProcessor, AutoModel

name = "{name}"
{pin}processor = AutoImageProcessor.from_pretrained(name{revision}, trust_remote_code=True)
model = AutoModel.from_pretrained(name{revision}, trust_remote_code=True)

pixel_values = processor(Image.open("image.png"), return_tensors="pt").pixel_values
with torch.no_grad():
    image_tokens = model.encode(pixel_values).image_tokens  # {shape}, int64 in [0, {num_codes})
    decoded = model.decode(image_tokens).decoded_pixel_values
processor.postprocess(decoded)[0].save("reconstruction.png")"""


@card
def tokenizer_card(config: VQConfig, facts: Facts, trained_on: str) -> Slots:
    """What the card of a tokenizer says."""
    size, factor, groups = config.image_size, config.downsample_factor, config.num_groups
    side, place = size // factor, loading(facts)
    return Slots(
        title="Image tokenizer",
        tags=("hf_vq", "image-tokenizer", "vector-quantization", "vq-vae", "custom_code"),
        opening=f"A vector-quantized image tokenizer: it turns an image of {size} x {size} pixels into "
        f"{grid(side, side, groups)} discrete tokens ({_bits(config):,} bits) and back. Made with `hf_vq`.",
        picture_alt="Images and their reconstructions",
        picture_caption="Above, images; below, their reconstructions.",
        code=_CODE.format(
            **place,
            shape=f"(1, {side}, {side}{'' if groups == 1 else f', {groups}'})",
            num_codes=config.num_codes,
        ),
        usage=f'In one step: `transformers.pipeline("image-tokenization", model=name{place["revision"]}, '
        'trust_remote_code=True)("image.png")["image_tokens"]`.\n\n',
        images=f" Images of other sizes work if {factor} divides their sides.",
        model={
            "network": f"{_NETWORKS[config.architecture]}, {config.base_channels} base channels",
            "parameters": facts.get("num_parameters") or None,
            "image": f"{config.num_channels} x {size} x {size}",
            "downsampling": f"{factor} x",
            "codebook": f"{config.num_codes:,} codes of {config.code_dim} dimensions",
            "rate": f"{_bits(config) / size**2:.3g} bits per pixel",
            "quantizer": QUANTIZERS[config.quantizer_type].card_words(config),
        },
        recipe={"loss": f"{config.reconstruction_loss.upper()} on pixels in [0, 1]{quantizer_loss(config)}"},
        task=("image-to-image", "Image reconstruction"),
        metrics=METRICS,
        preprocessing=facts.get("preprocessing")
        or f"shorter edge to {size} (bicubic, antialiased), {size} x {size} center crop",
        note="Errors are those of pixels in [0, 1].",
        limits=[
            f"It was made for images like those it was trained on{trained_on}; others come back worse, and the "
            "numbers above do not tell how much.",
            f"Each token stands for {factor} x {factor} pixels: small text, faces and fine texture are lost or made "
            "up.",
            "Tokens belong to these weights: another commit may give other tokens. Store the commit with them, and "
            "load with `revision=`.",
        ],
        works=[*tokenizer_works(config), *facts.get("methods", ())],
    )


def tokenizer_works(config: VQConfig) -> list[str]:
    """The works that a tokenizer uses: those of its quantizer and of its network."""
    return [*QUANTIZERS[config.quantizer_type].cited_works(config), config.architecture]


def quantizer_loss(config: QuantizerConfig) -> str:
    """The quantizer's term of the training loss, to be said behind the others; empty if it has none."""
    words = QUANTIZERS[config.quantizer_type].card_loss(config)
    return f" + {words}" if words else ""


def grid(rows: int, columns: int, groups: int) -> str:
    """The shape of an image's tokens in words."""
    return f"{rows} x {columns}" + ("" if groups == 1 else f" x {groups}")


def _bits(config: VQConfig) -> int:
    """Bits that the tokens of an image take, written with a fixed length."""
    per_group = config.num_codes if config.share_codebook else config.num_codes // config.num_groups
    positions = (config.image_size // config.downsample_factor) ** 2
    return math.ceil(positions * config.num_groups * math.log2(per_group))
