"""Cards of classifiers: which classes one tells apart, how it was made, what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_vq.cards.base import Facts, Metric, Slots, card, loading, named_classes
from hf_vq.cards.tokenizer import METRICS as TOKENIZER_METRICS
from hf_vq.cards.tokenizer import quantizer_loss
from hf_vq.modeling.quantizers_vq import QUANTIZERS

if TYPE_CHECKING:
    from hf_vq.modeling.configuration_vq_classifier import VQImageClassificationConfig

METRICS = {
    "accuracy": Metric("accuracy", "Accuracy", "{:.2%}"),
    "cross_entropy": Metric("cross_entropy", "Cross entropy (nats)", "{:.4f}"),
    **{name: TOKENIZER_METRICS[name]._replace(counted=None) for name in ("quantization_error", "usage", "perplexity")},
}
_CODE = """{model_info}from transformers import pipeline

name = "{name}"
{pin}classifier = pipeline("image-classification", model=name{revision}, trust_remote_code=True)
print(classifier("image.png"))"""


@card
def classifier_card(config: VQImageClassificationConfig, facts: Facts, trained_on: str) -> Slots:
    """What the card of a classifier says."""
    size, quantizer = config.image_size, QUANTIZERS[config.quantizer_type]
    names = [str(config.id2label[number]) for number in range(config.num_labels or 0)]  # type: ignore[index]
    return Slots(
        title="Image classifier",
        tags=("hf_vq", "vector-quantization", "custom_code"),
        pipeline_tag="image-classification",
        opening=f"An image classifier with a quantized layer: it tells {len(names)} classes apart by what a codebook "
        "lets through. Made with `hf_vq`.",
        code=_CODE.format(**loading(facts)),
        usage="The tokens of the quantized layer are in `classifier.model(pixel_values).image_tokens`. ",
        images=f" Images are brought to {size} x {size} pixels.",
        model={
            "backbone": "AlexNet" if config.backbone_config is None else config.backbone_config.model_type,
            "parameters": facts.get("num_parameters") or None,
            "image": f"{config.num_channels} x {size} x {size}",
            "classes": named_classes(names),
            "quantized layer": f"`{config.quantized_layer}`" if config.quantized_layer else "the block in the middle",
            "codebook": f"{config.num_codes:,} codes"
            # Known once a model was made of the configuration.
            + (f", for vectors of {config.quantized_size} dimensions" if config.quantized_size else ""),
            "quantizer": quantizer.card_words(config),
        },
        recipe={"loss": f"cross entropy{quantizer_loss(config)}"},
        task=("image-classification", "Image classification"),
        metrics=METRICS,
        limits=[
            "It knows the classes above and no other, from images like those it was trained on"
            f"{trained_on}; it gives every image one of them."
        ],
        works=quantizer.cited_works(config),
    )
