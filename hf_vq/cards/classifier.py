"""Cards of classifiers: how to use one, how the weights were made, what was measured, where limits are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_vq.cards.citations import CITATIONS, quantizer_works
from hf_vq.cards.merging import LICENSE_SECTION, metadata_record
from hf_vq.cards.tokenizer import format_rows, quantizer_words, table_cell
from hf_vq.utils.text import is_hub_id, public_name

if TYPE_CHECKING:
    from hf_vq.modeling.configuration_vq_classifier import VQImageClassificationConfig

TEMPLATE = Path(__file__).with_name("classifier_card_template.md")
TAGS = ("hf_vq", "vector-quantization", "custom_code")
MAX_CLASSES = 20  # named on the card

# Key of the metrics -> type in the card's metadata, its name, how it is printed.
METRICS = {
    "accuracy": ("accuracy", "Accuracy", "{:.2%}"),
    "cross_entropy": ("cross_entropy", "Cross entropy (nats)", "{:.4f}"),
    "quantization_error": ("quantization_error", "Quantization error (mean squared, per dimension)", "{:.4g}"),
    "usage": ("codebook_usage", "Codes in use", "{:.1%}"),
    "perplexity": ("codebook_perplexity", "Codebook perplexity", "{:,.1f}"),
}


def classifier_card(
    config: VQImageClassificationConfig,
    metrics: Mapping[str, float],
    dataset: str | None = None,
    split: str | None = None,
    training: Mapping[str, Any] | None = None,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    num_parameters: int | None = None,
    versions: Mapping[str, str] | None = None,
) -> ModelCard:
    """Writes the card of a classifier.

    Args:
        config: The classifier's configuration.
        metrics: What `ClassifierTrainer.evaluate` returned; other keys and values that are not finite are left out.
        dataset: The data set, as given to `load_images`. Of a local path only the last part is printed.
        split: The split that the metrics were measured on.
        training: Rows of the recipe, such as ``{"steps": 1500}``; None values are left out.
        repo_id: Where the model will be loaded from; a placeholder by default.
        license: Identifier of the weights' license on the Hub; None to say nothing.
        num_parameters: Parameters of the model.
        versions: Library -> version it was trained with.

    Returns:
        The card; ``str(card)`` is the README, ``card.data`` its metadata. The generated part stands between comments,
        so that `fill_card` can renew it.
    """
    hub_dataset = dataset if is_hub_id(dataset) else None
    dataset_name = public_name(dataset)
    values = {
        key: float(f"{metrics[key]:.6g}") for key in METRICS if key in metrics and math.isfinite(float(metrics[key]))
    }
    num_images = int(metrics["num_images"]) if "num_images" in metrics else None
    title = repo_id.rstrip("/").split("/")[-1] if repo_id else "Image classifier"
    data = ModelCardData(
        library_name="transformers",
        license=license,
        pipeline_tag="image-classification",
        tags=list(TAGS),
        datasets=[hub_dataset] if hub_dataset else None,
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=hub_dataset or dataset_name or "unknown",
                dataset_name=dataset_name or "held-out images",
                dataset_split=split,
                dataset_args=None if num_images is None else {"num_images": num_images},
                metric_type=METRICS[key][0],
                metric_name=METRICS[key][1],
                metric_value=value,
            )
            for key, value in values.items()
        ]
        or None,
    )
    names = [str(config.id2label[number]) for number in range(config.num_labels or 0)]  # type: ignore[index]
    count = "" if num_images is None else f"{num_images:,}"
    measured_on = f"{table_cell(dataset_name or 'held-out images')} | {table_cell(split or '')} | {count}"
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        record=metadata_record(data),
        title=title,
        name=repo_id or "path/to/this/folder",
        on_hub=repo_id is not None,
        image_size=config.image_size,
        num_classes=len(names),
        architecture=_architecture(config, names, num_parameters),
        recipe=_recipe(config, training or {}, dataset_name, versions or {}),
        measured={
            METRICS[key][1]: f"{METRICS[key][2].format(value)} | {measured_on}" for key, value in values.items()
        },
        trained_on=dataset_name,
        license=license,
        license_section=LICENSE_SECTION.format(license),
        citations=[CITATIONS[key] for key in quantizer_works(config)],
    )


def _architecture(config: VQImageClassificationConfig, names: list[str], num_parameters: int | None) -> dict[str, str]:
    layer = config.quantized_layer
    more = ", ..." if len(names) > MAX_CLASSES else ""
    rows = {
        "backbone": "AlexNet" if config.backbone_config is None else config.backbone_config.model_type,
        "parameters": f"{num_parameters:,}" if num_parameters else None,
        "image": f"{config.num_channels} x {config.image_size} x {config.image_size}",
        "classes": table_cell(f"{len(names):,}: {', '.join(names[:MAX_CLASSES])}{more}"),
        "quantized layer": "the block in the middle" if layer is None else f"`{layer}`",
        "codebook": f"{config.num_codes:,} codes, for vectors of {config.quantized_size} dimensions",
        "quantizer": quantizer_words(config),
    }
    return {key: value for key, value in rows.items() if value is not None}


def _recipe(
    config: VQImageClassificationConfig,
    training: Mapping[str, Any],
    dataset_name: str | None,
    versions: Mapping[str, str],
) -> dict[str, str]:
    loss = f"cross entropy + {config.commitment_weight:g} x commitment (codebook share beta {config.beta:g})"
    rows: dict[str, Any] = {"data set": dataset_name, "loss": loss}
    rows |= training
    rows["trained with"] = ", ".join(f"{name} {version}" for name, version in versions.items()) or None
    return format_rows(rows)
