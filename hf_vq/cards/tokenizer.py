"""Model cards: what a checkpoint is, how to load it, how it was made, what was measured, where its limits are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_vq.cards.citations import CITATIONS, cited_works, has_affine_map
from hf_vq.cards.merging import LICENSE_SECTION, metadata_record
from hf_vq.utils.text import is_hub_id, public_name

if TYPE_CHECKING:
    from hf_vq.modeling.configuration_quantizer_vq import QuantizerConfig
    from hf_vq.modeling.configuration_vq import VQConfig

TEMPLATE = Path(__file__).with_name("model_card_template.md")
TAGS = ("hf_vq", "image-tokenizer", "vector-quantization", "vq-vae", "custom_code")

# Key of the metrics -> type in the card's metadata, its name, how it is printed.
METRICS = {
    "mse": ("mse", "MSE", "{:.6f}"),
    "psnr": ("psnr", "PSNR (dB, mean of the images')", "{:.2f}"),
    "ssim": ("ssim", "SSIM", "{:.4f}"),
    "rfid": ("rfid", "rFID", "{:.2f}"),
    "quantization_error": ("quantization_error", "Quantization error (mean squared, per dimension)", "{:.4g}"),
    "usage": ("codebook_usage", "Codes in use", "{:.1%}"),
    "perplexity": ("codebook_perplexity", "Codebook perplexity", "{:,.1f}"),
}


def tokenizer_card(
    config: VQConfig,
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
    picture_caption: str = "Above, images; below, their reconstructions.",
    preprocessing: str | None = None,
    methods: Sequence[str] = (),
) -> ModelCard:
    """Writes the card of a tokenizer.

    Args:
        config: The tokenizer's configuration.
        metrics: What `TokenizerMetrics.compute` returned, and `"rfid"` where it was measured; other keys and values
            that are not finite are left out.
        dataset: The data set, as given to `load_images`. Of a local path only the last part is printed.
        split: The split that the metrics were measured on.
        training: Rows of the recipe, such as ``{"steps": 1500, "learning rate": 3e-4}``; None values are left out.
        repo_id: Where the model will be loaded from; a placeholder by default.
        license: Identifier of the weights' license on the Hub; None to say nothing.
        num_parameters: Parameters of the model.
        versions: Library -> version it was trained with.
        picture: File name, in the repository, of a picture with reconstructions.
        picture_caption: What it shows.
        preprocessing: How the measured images were made ready; by default as `VQImageProcessor` does it.
        methods: Keys of `CITATIONS` to be cited besides those that the configuration implies.

    Returns:
        The card; ``str(card)`` is the README, ``card.data`` its metadata. The generated part stands between comments,
        so that `fill_card` can renew it.
    """
    hub_dataset = dataset if is_hub_id(dataset) else None
    dataset_name = public_name(dataset)
    values = {
        key: float(f"{metrics[key]:.6g}") for key in METRICS if key in metrics and math.isfinite(float(metrics[key]))
    }
    size = config.image_size
    preprocessing = preprocessing or f"shorter edge to {size} (bicubic, antialiased), {size} x {size} center crop"
    num_images = int(metrics["num_images"]) if "num_images" in metrics else None
    title = repo_id.rstrip("/").split("/")[-1] if repo_id else "Image tokenizer"
    data = ModelCardData(
        library_name="transformers",
        license=license,
        tags=list(TAGS),
        datasets=[hub_dataset] if hub_dataset else None,
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="image-to-image",
                task_name="Image reconstruction",
                dataset_type=hub_dataset or dataset_name or "unknown",
                dataset_name=dataset_name or "held-out images",
                dataset_split=split,
                dataset_args={"preprocessing": preprocessing}
                | ({} if num_images is None else {"num_images": num_images}),
                metric_type=METRICS[key][0],
                metric_name=METRICS[key][1],
                metric_value=value,
            )
            for key, value in values.items()
        ]
        or None,
    )
    side = size // config.downsample_factor
    groups = "" if config.num_groups == 1 else f" x {config.num_groups}"
    count = "" if num_images is None else f"{num_images:,}"
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        record=metadata_record(data),
        title=title,
        name=repo_id or "path/to/this/folder",
        on_hub=repo_id is not None,
        image_size=size,
        factor=config.downsample_factor,
        num_codes=config.num_codes,
        tokens=f"{side} x {side}{groups}",
        tokens_shape=f"(1, {side}, {side}{'' if config.num_groups == 1 else f', {config.num_groups}'})",
        bits=f"{_bits(config):,}",
        picture=picture,
        picture_caption=picture_caption,
        architecture=_architecture(config, num_parameters),
        recipe=_recipe(config, training or {}, dataset_name, versions or {}),
        measured={METRICS[key][1]: _printed(key, value, metrics) for key, value in values.items()},
        measured_on=" | ".join(
            [table_cell(dataset_name or "held-out images"), table_cell(split or ""), count, preprocessing]
        ),
        trained_on=dataset_name,
        license=license,
        license_section=LICENSE_SECTION.format(license),
        citations=[CITATIONS[key] for key in dict.fromkeys([*cited_works(config), *methods])],
    )


def _bits(config: VQConfig) -> int:
    """Bits that the tokens of an image take, written with a fixed length."""
    per_group = config.num_codes if config.share_codebook else config.num_codes // config.num_groups
    positions = (config.image_size // config.downsample_factor) ** 2
    return math.ceil(positions * config.num_groups * math.log2(per_group))


def _architecture(config: VQConfig, num_parameters: int | None) -> dict[str, str]:
    network = {"vqgan": "VQGAN-style encoder and decoder", "sqvae": "SQ-VAE encoder and decoder"}
    rows = {
        "network": f"{network[config.architecture]}, {config.base_channels} base channels",
        "parameters": f"{num_parameters:,}" if num_parameters else None,
        "image": f"{config.num_channels} x {config.image_size} x {config.image_size}",
        "downsampling": f"{config.downsample_factor} x",
        "codebook": f"{config.num_codes:,} codes of {_code_dim(config)} dimensions",
        "rate": f"{_bits(config) / config.image_size**2:.3g} bits per pixel",
        "quantizer": quantizer_words(config),
    }
    return {key: value for key, value in rows.items() if value is not None}


def _code_dim(config: VQConfig) -> int:
    return config.embed_dim // config.num_groups if config.quantizer_type == "group" else config.embed_dim


def quantizer_words(config: QuantizerConfig) -> str:
    """The parts of the quantizer that are on, in words."""
    kinds = {"vector": "one code", "group": f"{config.num_groups} groups", "residual": f"{config.num_groups} levels"}
    parts = [f"{kinds[config.quantizer_type]} per position"]
    if config.num_groups > 1:
        parts.append("shared codebook" if config.share_codebook else "separate codebooks")
    if config.codebook_update == "ema":
        parts.append("EMA codebook")
    if config.gradient_estimator == "rotation":
        parts.append("rotation trick")
    if config.kmeans_init:
        parts.append("k-means++ initialisation")
    if config.alternating_steps:
        parts.append(f"alternating optimisation ({config.alternating_steps} {config.alternating_kind} step per batch)")
    if config.sync_nu:
        parts.append(f"synchronized commitment (nu {config.sync_nu:g})")
    if has_affine_map(config):
        parts.append(f"affine map of the codes ({config.affine_mode})")
    if config.replace_freq:
        parts.append(f"replacement of codes unused for {config.replace_freq} batches ({config.replace_policy})")
    if config.norm not in (None, "none") or config.cb_norm not in (None, "none"):
        parts.append(f"normalisation (vectors: {config.norm or 'none'}, codes: {config.cb_norm or 'none'})")
    return ", ".join(parts)


def _recipe(
    config: VQConfig, training: Mapping[str, Any], dataset_name: str | None, versions: Mapping[str, str]
) -> dict[str, str]:
    loss = f"{config.reconstruction_loss.upper()} on pixels in [0, 1] + {config.commitment_weight:g} x commitment"
    rows: dict[str, Any] = {"data set": dataset_name, "loss": f"{loss} (codebook share beta {config.beta:g})"}
    rows |= training
    rows["trained with"] = ", ".join(f"{name} {version}" for name, version in versions.items()) or None
    return format_rows(rows)


def format_rows(rows: Mapping[str, Any]) -> dict[str, str]:
    """Rows of a table as they are printed, without those that are None."""
    return {
        str(key).replace("_", " "): f"{value:,}" if type(value) is int else f"{value:g}" if type(value) is float
        else table_cell(value)
        for key, value in rows.items()
        if value is not None
    }  # fmt: skip


def _printed(key: str, value: float, metrics: Mapping[str, float]) -> str:
    text = METRICS[key][2].format(value)
    if key == "usage" and "active_codes" in metrics:
        text += f" ({int(metrics['active_codes']):,})"
    return text


def table_cell(value: Any) -> str:
    """Text in a table, where a bar or a line break would end the cell."""
    return str(value).replace("|", "\\|").replace("\n", " ")
