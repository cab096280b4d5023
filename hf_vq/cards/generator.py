"""Cards of generators: samples, how to make more, how the weights were made, what was measured, where limits are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_vq.cards.citations import CITATIONS, cited_works
from hf_vq.cards.merging import LICENSE_SECTION, metadata_record
from hf_vq.cards.tokenizer import format_rows, table_cell
from hf_vq.utils.text import is_hub_id, public_name

if TYPE_CHECKING:
    from hf_vq.modeling.configuration_maskgit import MaskGitConfig

TEMPLATE = Path(__file__).with_name("generator_card_template.md")
TAGS = ("hf_vq", "maskgit", "image-generation", "vector-quantization", "custom_code")
MAX_CLASSES = 20  # named on the card

# Key of the metrics, also their type in the card's metadata -> name, how it is printed.
METRICS = {
    "masked_cross_entropy": ("Cross entropy of hidden tokens (nats)", "{:.4f}"),
    "masked_accuracy": ("Hidden tokens guessed right", "{:.2%}"),
    "frechet_8x8_pixels": ("Fréchet distance of images shrunk to 8 x 8 pixels (not FID)", "{:.4f}"),
}


def generator_card(
    config: MaskGitConfig,
    metrics: Mapping[str, float],
    dataset: str | None = None,
    split: str | None = None,
    training: Mapping[str, Any] | None = None,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    num_parameters: int | None = None,
    versions: Mapping[str, str] | None = None,
    picture: str | None = None,
    picture_caption: str = "Samples.",
    sampling: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Writes the card of a generator.

    Args:
        config: The generator's configuration.
        metrics: What `GeneratorTrainer.evaluate` returned; other keys and values that are not finite are left out.
        dataset: The tokens or the images it was trained on. Of a local path only the last part is printed.
        split: The split that the metrics were measured on.
        training: Rows of the recipe, such as ``{"steps": 1500}``; None values are left out.
        repo_id: Where the model will be loaded from; a placeholder by default.
        license: Identifier of the weights' license on the Hub; None to say nothing.
        num_parameters: Parameters of the transformer.
        versions: Library -> version it was trained with.
        picture: File name, in the repository, of a picture with samples.
        picture_caption: What it shows.
        sampling: Arguments of `generate` for the card's code; by default 8 steps, with guidance if there are classes.

    Returns:
        The card; ``str(card)`` is the README, ``card.data`` its metadata. The generated part stands between comments,
        so that `fill_card` can renew it.
    """
    hub_dataset = dataset if is_hub_id(dataset) else None
    dataset_name = public_name(dataset)
    values = {
        key: float(f"{metrics[key]:.6g}") for key in METRICS if key in metrics and math.isfinite(float(metrics[key]))
    }
    # Key of the number of images that a metric is of.
    of_images = {key: "num_distance_images" if key == "frechet_8x8_pixels" else "num_images" for key in values}
    counts = {name: int(metrics[name]) for name in of_images.values() if name in metrics}
    title = repo_id.rstrip("/").split("/")[-1] if repo_id else "Image generator"
    data = ModelCardData(
        library_name="transformers",
        license=license,
        pipeline_tag="unconditional-image-generation",
        tags=list(TAGS),
        datasets=[hub_dataset] if hub_dataset else None,
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="unconditional-image-generation",
                task_name="Image generation",
                dataset_type=hub_dataset or dataset_name or "unknown",
                dataset_name=dataset_name or "held-out images",
                dataset_split=split,
                dataset_args=counts or None,
                metric_type=key,
                metric_name=METRICS[key][0],
                metric_value=value,
            )
            for key, value in values.items()
        ]
        or None,
    )
    sampling = dict(sampling or ({"num_steps": 8} | ({"guidance_scale": 3.0} if config.num_classes else {})))
    vq_config = config.vq_config
    rows, columns = config.grid_size
    measured_on = f"{table_cell(dataset_name or 'held-out images')} | {table_cell(split or '')}"
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        record=metadata_record(data),
        title=title,
        name=repo_id or "path/to/this/folder",
        on_hub=repo_id is not None,
        image_size=vq_config.image_size,
        tokens=f"{rows} x {columns}" + ("" if config.num_groups == 1 else f" x {config.num_groups}"),
        codebook_size=f"{config.codebook_size:,}",
        num_classes=config.num_classes,
        labels=list(range(min(config.num_classes, 4))),
        sampling="".join(f", {name}={value!r}" for name, value in sampling.items()),
        pipeline_input=repr(class_names(config)[0]) if config.num_classes else "None",
        picture=picture,
        picture_caption=picture_caption,
        architecture=_architecture(config, num_parameters),
        recipe=_recipe(config, training or {}, dataset_name, versions or {}),
        measured={
            METRICS[key][0]: f"{METRICS[key][1].format(value)} | {measured_on} | {counts.get(of_images[key], '')}"
            for key, value in values.items()
        },
        has_distance="frechet_8x8_pixels" in values,
        mask_schedule=config.mask_schedule,
        trained_on=dataset_name,
        license=license,
        license_section=LICENSE_SECTION.format(license),
        citations=[CITATIONS[key] for key in ("maskgit", *cited_works(vq_config))],
    )


def _architecture(config: MaskGitConfig, num_parameters: int | None) -> dict[str, str]:
    positions = {"learned": "learned", "rotary": "rotary, by row and column"}
    conditioning = {"adaln_zero": "adaLN-zero", "prefix": "a token before the image's"}
    rows = {
        "network": f"bidirectional transformer, {config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{config.num_attention_heads} heads",
        "parameters": f"{num_parameters:,}, besides the tokenizer's" if num_parameters else None,
        "positions": positions[config.position_type],
        "classes": _classes(config),
        "conditioning": conditioning[config.class_conditioning] if config.num_classes else None,
    }
    return {key: value for key, value in rows.items() if value is not None}


def class_names(config: MaskGitConfig) -> list[str]:
    """The names of a generator's classes."""
    names: Any = config.id2label
    return [names[number] for number in range(config.num_classes)]


def _classes(config: MaskGitConfig) -> str:
    names = class_names(config)
    if not names:
        return "none"
    if names == [f"LABEL_{number}" for number in range(len(names))]:
        return f"{len(names):,}"
    more = ", ..." if len(names) > MAX_CLASSES else ""
    return table_cell(f"{len(names):,}: {', '.join(names[:MAX_CLASSES])}{more}")


def _recipe(
    config: MaskGitConfig, training: Mapping[str, Any], dataset_name: str | None, versions: Mapping[str, str]
) -> dict[str, str]:
    loss = "cross entropy of the hidden tokens"
    if config.unmasked_loss_weight:
        loss += f" + {config.unmasked_loss_weight:g} x that of the visible ones"
    rows: dict[str, Any] = {
        "data set": dataset_name,
        "loss": loss,
        "label smoothing": float(config.label_smoothing) or None,
        "masks": f"{config.mask_schedule} schedule, {config.mask_count} counts",
        "class dropout": float(config.class_dropout) or None if config.num_classes else None,
        "dropout": float(config.dropout) or None,
    }
    rows |= training
    rows["trained with"] = ", ".join(f"{name} {version}" for name, version in versions.items()) or None
    return format_rows(rows)
