"""Cards of generators: samples, how to make more, how the weights were made, what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_vq.cards.base import Facts, Metric, Slots, card, loading, named_classes
from hf_vq.cards.tokenizer import grid, tokenizer_works

if TYPE_CHECKING:
    from hf_vq.modeling.configuration_maskgit import MaskGitConfig

METRICS = {
    "masked_cross_entropy": Metric("masked_cross_entropy", "Cross entropy of hidden tokens (nats)", "{:.4f}"),
    "masked_accuracy": Metric("masked_accuracy", "Hidden tokens guessed right", "{:.2%}"),
    "frechet_8x8_pixels": Metric(
        "frechet_8x8_pixels",
        "Fréchet distance of images shrunk to 8 x 8 pixels (not FID)",
        "{:.4f}",
        images="num_distance_images",
        note="The Fréchet distance is between images of the held-out images' classes and the held-out images as the "
        "tokenizer decodes them; its features are the images shrunk to 8 x 8 pixels, not a network's, so it is no FID "
        "and sees no details.",
    ),
}
_POSITIONS = {"learned": "learned", "rotary": "rotary, by row and column"}
_CONDITIONING = {"adaln_zero": "adaLN-zero", "prefix": "a token before the image's"}
_CODE = """import torch
{model_info}from transformers import AutoModel

name = "{name}"
{pin}model = AutoModel.from_pretrained(name{revision}, trust_remote_code=True)
output = model.generate({wanted}{sampling}, generator=torch.Generator().manual_seed(0))
output.images[0].save("sample.png")  # the tokens are in output.image_tokens"""
_USAGE = (
    'In one step: `transformers.pipeline("image-generation", model=name{revision}, trust_remote_code=True)({label})'
    '["image"]`.\n\n`generate` fills in parts of given images, too (`pixel_values=` or `image_tokens=`, and `mask=`). '
    "The tokenizer alone is `model.tokenizer`. "
)


@card
def generator_card(config: MaskGitConfig, facts: Facts, trained_on: str) -> Slots:
    """What the card of a generator says."""
    place, classes = loading(facts), config.num_classes
    size, parameters = config.vq_config.image_size, facts.get("num_parameters")
    names = class_names(config)
    sampling = facts.get("sampling") or ({"num_steps": 8} | ({"guidance_scale": 3.0} if classes else {}))
    return Slots(
        title="Image generator",
        tags=("hf_vq", "maskgit", "image-generation", "vector-quantization", "custom_code"),
        pipeline_tag="unconditional-image-generation",
        opening="A masked generative image transformer with its image tokenizer: it makes images of "
        f"{size} x {size} pixels{f', of {classes} classes or of none,' if classes else ''} by filling in "
        f"{grid(*config.grid_size, config.num_groups)} hidden tokens out of {config.codebook_size:,} codes in a few "
        "steps. Made with `hf_vq`.",
        picture_alt="Samples",
        picture_caption="Samples.",
        code=_CODE.format(
            **place,
            wanted=f"class_labels={list(range(min(classes, 4)))}" if classes else "num_images=4",
            sampling="".join(f", {option}={value!r}" for option, value in sampling.items()),
        ),
        usage=_USAGE.format(revision=place["revision"], label=repr(names[0]) if classes else "None"),
        model={
            "network": f"bidirectional transformer, {config.num_hidden_layers} layers, {config.hidden_size} wide, "
            f"{config.num_attention_heads} heads",
            "parameters": f"{parameters:,}, besides the tokenizer's" if parameters else None,
            "positions": _POSITIONS[config.position_type],
            "classes": _classes(names),
            "conditioning": _CONDITIONING[config.class_conditioning] if classes else None,
        },
        recipe={
            "loss": "cross entropy of the hidden tokens"
            + (f" + {config.unmasked_loss_weight:g} x that of the visible ones" * bool(config.unmasked_loss_weight)),
            "label smoothing": float(config.label_smoothing) or None,
            "masks": f"{config.mask_schedule} schedule, {config.mask_count} counts",
            "class dropout": float(config.class_dropout) or None if classes else None,
            "dropout": float(config.dropout) or None,
        },
        task=("unconditional-image-generation", "Image generation"),
        metrics=METRICS,
        note=f"Tokens are hidden as in training ({config.mask_schedule} schedule), by masks that a seed fixes, and "
        "guessed without smoothing.",
        limits=[
            f"It makes images like those it was trained on{trained_on}, and may come close to single ones of "
            "them; nothing here measures that.",
            "The tokenizer bounds the quality: what it cannot reconstruct cannot be generated.",
        ],
        works=["maskgit", *tokenizer_works(config.vq_config)],
    )


def class_names(config: MaskGitConfig) -> list[str]:
    """The names of a generator's classes."""
    names: Any = config.id2label
    return [names[number] for number in range(config.num_classes)]


def _classes(names: list[str]) -> str:
    if not names:
        return "none"
    has_names = names != [f"LABEL_{number}" for number in range(len(names))]
    return named_classes(names) if has_names else f"{len(names):,}"
