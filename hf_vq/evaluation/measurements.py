"""What is measured of tokenizers and of generators: one pass over the images, whatever the number of models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import PIL.Image
import torch
from accelerate import PartialState

from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.evaluation.images import ImageBatches, to_bytes, to_pil
from hf_vq.evaluation.report import metric_key
from hf_vq.evaluation.subjects import Subject
from hf_vq.metrics.base import bits_per_image
from hf_vq.metrics.features import FeatureExtractor
from hf_vq.metrics.generation import FrechetDistance, GeneratorMetrics
from hf_vq.metrics.lpips import LPIPS, Lpips
from hf_vq.metrics.reconstruction import IMAGE_METRICS, TokenizerMetrics
from hf_vq.modeling.pixel_range_vq import SIGNED, convert_pixels
from hf_vq.plots.images import reconstruction_grid, sample_sheet
from hf_vq.utils.processes import sum_over_processes
from hf_vq.utils.progress import track
from hf_vq.utils.text import shorten

PICTURE_COLUMNS = 8

Measured = tuple[list[dict[str, float]], dict[str, Any], PIL.Image.Image | None]
"""The metrics of each model, what is special in the protocol, and a picture (None if this process saw no images)."""


@torch.no_grad()
def evaluate_tokenizers(
    subjects: Sequence[Subject], batches: ImageBatches, extractor: FeatureExtractor, args: EvaluationArguments
) -> Measured:
    """Reconstruction errors, use of the codes, bits, and the Fréchet distance of the reconstructions."""
    models = [subject.model for subject in subjects]
    lpips = Lpips(models[0].device) if args.lpips else None
    image_metrics = IMAGE_METRICS | ({LPIPS: lpips.metric()} if lpips is not None else {})
    metrics = [TokenizerMetrics(model.config.num_codes, image_metrics=image_metrics) for model in models]
    distances = [FrechetDistance(extractor.num_features) for _ in models]
    pictures: dict[str, torch.Tensor] = {}
    originals: torch.Tensor | None = None
    for batch in _with_progress(batches, args):
        pixels = batch.pixel_values.to(models[0].device)
        reference = extractor(to_bytes(pixels)).values
        for number, (subject, model) in enumerate(zip(subjects, models, strict=True)):
            pixel_range = model.config.pixel_range
            output = model(convert_pixels(pixels, SIGNED, pixel_range), return_loss=False)
            decoded = convert_pixels(output.decoded_pixel_values.float(), pixel_range, SIGNED)
            metrics[number].update(pixels, decoded, output.image_tokens, output.quantization_error)
            distances[number].update(reference, generated=False)
            distances[number].update(extractor(to_bytes(decoded)).values, generated=True)
            if originals is None:
                pictures[subject.label] = decoded[:PICTURE_COLUMNS].cpu()
        if originals is None:
            originals = pixels[:PICTURE_COLUMNS].cpu()
    _require_images(batches, args)
    results = []
    for number, model in enumerate(models):
        values = metrics[number].compute()
        config, num_images = model.config, int(values["num_images"])
        length = int(metrics[number].code_counts().sum()) // num_images
        codebooks = 1 if config.share_codebook else config.num_groups
        values |= bits_per_image(length, config.num_codes, values["perplexity"], codebooks)
        pixels_per_image = length // config.num_groups * config.downsample_factor**2
        values["bits_per_pixel"] = values["bits_per_image"] / pixels_per_image
        if num_images > 1:
            values[metric_key("frechet", "tokenizer", extractor.name)] = distances[number].compute()
        results.append(values)
    details: dict[str, Any] = {
        "reference": "the same images as preprocessed; features of both rounded to 8 bits",
        "errors": "of pixels in [0, 1], reconstructions clamped and not rounded; PSNR is the mean of each image's",
    }
    if lpips is not None:
        details["lpips"] = lpips.describe()
    return results, details, None if originals is None else reconstruction_grid(originals, pictures)


@torch.no_grad()
def evaluate_generators(
    subjects: Sequence[Subject], batches: ImageBatches, extractor: FeatureExtractor, args: EvaluationArguments
) -> Measured:
    """Distances between the features of generated images and of the data set's, precision, recall, and the score."""
    metrics = [
        GeneratorMetrics(extractor.num_features, extractor.num_classes, sample_size=args.sample_size, seed=args.seed)
        for _ in subjects
    ]
    if args.lpips:
        raise ValueError("lpips compares an image with its reconstruction: generators have none. Leave it out")
    classes = torch.zeros(max(subject.model.config.num_classes for subject in subjects), dtype=torch.int64)
    pictures: list[tuple[str, list[PIL.Image.Image]]] = []
    sampling = {name: value for name, value in vars(args.sampling()).items() if value is not None}
    for subject in subjects:  # wrong settings are told of before the data set is read
        shares = torch.ones_like(classes)[: subject.model.config.num_classes]
        _sample(subject, shares, torch.zeros(1, dtype=torch.int64), 1, sampling, args.seed)
    for batch in _with_progress(batches, args):
        images = to_bytes(batch.pixel_values)
        features = extractor(images.to(subjects[0].model.device))
        for measured in metrics:
            measured.update(features, batch.indices, generated=False)
        labels = batch.labels[batch.labels >= 0]
        if len(classes) and len(labels):
            _check_labels(int(labels.max()), subjects, args)
            classes += torch.bincount(labels, minlength=len(classes))
        if not pictures:
            pictures.append(("data set", to_pil(images[:PICTURE_COLUMNS])))
    num_images = _require_images(batches, args)
    if num_images < 2:
        raise ValueError("the features of generated images are compared with those of at least two images, got one")
    classes = sum_over_processes(classes)
    has_labels = bool(classes.any())

    total = num_images if args.num_samples is None else args.num_samples
    results, estimators = [], {}
    for subject, measured in zip(subjects, metrics, strict=True):
        shares = (classes if has_labels else torch.ones_like(classes))[: subject.model.config.num_classes]
        for numbers, images in _samples(subject, shares, total, sampling, args):
            measured.update(extractor(images), numbers, generated=True)
            if numbers[0] == 0:
                pictures.append((subject.label, to_pil(images[:PICTURE_COLUMNS])))
        values = measured.compute()
        estimators = measured.estimators(values)
        results.append(
            {
                name if name.startswith("num_") else metric_key(name, "generator", extractor.name): value
                for name, value in values.items()
            }
        )
    details: dict[str, Any] = {
        "reference": "the images of the data set as preprocessed, not the tokenizer's reconstructions",
        "sampling": {"num_images": total, **sampling, "seed": f"{args.seed} + number of the image"},
        "estimators": estimators,
    }
    if len(classes):
        details["sampling"]["classes"] = "shares of the data set" if has_labels else "equal shares"
    if not extractor.num_classes:
        details["estimators"]["score"] = "none: these features give no probabilities of classes"
    columns = min((len(row) for _, row in pictures), default=0)
    labels = [label for label, _ in pictures]
    sheet = [image for _, row in pictures for image in row[:columns]]
    return results, details, _sheet(sheet, labels, columns) if columns else None


def _sheet(images: list[PIL.Image.Image], labels: list[str], columns: int) -> PIL.Image.Image:
    """Rows of images of the data set and of each model, which are no pairs."""
    return sample_sheet(images, row_labels=labels, columns=columns, are_pairs=False)


def _samples(
    subject: Subject, shares: torch.Tensor, total: int, sampling: dict[str, Any], args: EvaluationArguments
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Numbers and uint8 images of this process's batches of samples; image i is drawn with a seed of its own."""
    state = PartialState()
    firsts = range(state.process_index * args.batch_size, total, state.num_processes * args.batch_size)
    for first in track(firsts, len(firsts), unit="batches", desc=subject.label, silent=_is_quiet(args)):
        numbers = torch.arange(first, min(first + args.batch_size, total))
        yield numbers, _sample(subject, shares, numbers, total, sampling, args.seed)


def _sample(
    subject: Subject, shares: torch.Tensor, numbers: torch.Tensor, total: int, sampling: dict[str, Any], seed: int
) -> torch.Tensor:
    """The images of these numbers, uint8."""
    model = subject.model
    output = model.generate(
        class_labels=spread_labels(shares, numbers, total) if len(shares) else None,
        num_images=len(numbers),
        generator=[torch.Generator().manual_seed(seed + number) for number in numbers.tolist()],
        output_type="pt",
        **sampling,
    )
    assert isinstance(output.images, torch.Tensor)
    return output.images


def spread_labels(classes: torch.Tensor, numbers: torch.Tensor, total: int) -> torch.Tensor:
    """Classes for some of `total` images, so that all of them have the classes' shares and neighbors differ.

    Args:
        classes: Weight of each class (num_classes,), integers.
        numbers: Of the images (batch,), in [0, total).
        total: How many there will be.

    Returns:
        Int64 tensor (batch,).
    """
    stride = max(1, round(total * 0.618))
    while math.gcd(stride, total) > 1:  # a walk through all places
        stride += 1
    places = (numbers * stride % total + 0.5) / total * int(classes.sum())
    return torch.searchsorted(classes.cumsum(0).double(), places.double(), right=True)


def _check_labels(largest: int, subjects: Sequence[Subject], args: EvaluationArguments) -> None:
    for subject in subjects:
        known = subject.model.config.num_classes
        if 0 < known <= largest:
            raise ValueError(
                f"'{args.dataset}' has images of class {largest}, '{subject.name}' knows {known} classes: it was made "
                "for other data"
            )


def _require_images(batches: ImageBatches, args: EvaluationArguments) -> int:
    """How many images all processes have read; a collective."""
    num_images, num_skipped = batches.count()
    if not num_images:
        reasons = shorten(batches.all_skipped())
        why = f"none of its {num_skipped} images can be read: {reasons}" if num_skipped else "it is empty"
        raise ValueError(f"no images to measure in the split {args.split!r} of '{args.dataset}': {why}")
    return num_images


def _with_progress(batches: ImageBatches, args: EvaluationArguments) -> Any:
    return track(batches, batches.num_batches, unit="batches", desc="images", silent=_is_quiet(args))


def _is_quiet(args: EvaluationArguments) -> bool:
    return args.disable_tqdm or not PartialState().is_main_process
