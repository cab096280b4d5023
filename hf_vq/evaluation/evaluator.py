"""One evaluator for tokenizers and generators: the same images, the same arithmetic, and a record of both.

Any number of processes give the numbers of one, and memory does not grow with the number of images.
"""

from __future__ import annotations

import logging
import platform
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import torchmetrics
import transformers

from hf_vq.data.held_out import HELD_OUT, find_held_out
from hf_vq.data.sources import load_images, pinned_revision, require_place
from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.evaluation.cards import update_cards
from hf_vq.evaluation.images import ImageBatches, describe_preprocessing
from hf_vq.evaluation.report import Report
from hf_vq.evaluation.subjects import common_processor, held_out_by, load_subjects
from hf_vq.kinds import kind_of, resolve
from hf_vq.metrics.features import make_extractor
from hf_vq.modeling.version_vq import __version__
from hf_vq.utils.processes import on_every_process, processes_of_run
from hf_vq.utils.text import public_name, shorten

logger = logging.getLogger(__name__)


def evaluate(args: EvaluationArguments) -> Report:
    """Measures models; all processes of a run call it with the same arguments, the main one writes the files.

    Args:
        args: The settings.

    Returns:
        The report, the same numbers on all processes; the picture on the main one alone.

    Raises:
        FileNotFoundError: There are no images, or no model.
        HubError: A model cannot be fetched, or its card cannot be pushed.
        ModuleNotFoundError: The features need an extra that is not installed.
        ValueError: The models cannot be compared, or the data set is empty or of other classes than a generator.
    """
    require_place(args.dataset)
    state = processes_of_run(args.use_cpu)

    def load() -> tuple[Any, Any, Any, Any, Any]:
        subjects = load_subjects(args.names, allow_unverified=args.allow_unverified)
        processor = common_processor(subjects, args.image_size)
        revision = pinned_revision(args.dataset, args.dataset_revision)
        where: dict[str, Any] = {"image_column": args.image_column, "revision": revision}
        if args.split == HELD_OUT:
            record = held_out_by(subjects)
            images = find_held_out(load_images(args.dataset, record.split, **where), args.dataset, record)
        else:
            images = load_images(args.dataset, args.split, streaming=args.streaming, **where)
        extractor = make_extractor(args.features, processor.num_channels, args.inception_weights)
        return subjects, processor, revision, images, extractor

    # One process of a node downloads, the others read its cache.
    subjects, processor, revision, images, extractor = on_every_process(load, state)
    if state.is_main_process:  # hours before the numbers go there
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    extractor.to(state.device)
    for subject in subjects:
        subject.model.to(state.device)
    batches = ImageBatches(
        images,
        processor,
        batch_size=args.batch_size,
        max_images=args.max_images,
        num_threads=args.num_threads,
        rank=state.process_index,
        world_size=state.num_processes,
        strict=args.strict,
    )
    measurement = kind_of(subjects[0].model).measurement
    assert measurement is not None
    metrics, details, picture = resolve(measurement)(subjects, batches, extractor, args)
    num_images, num_skipped = batches.count()
    if skipped := batches.all_skipped():
        logger.warning("skipped %d images that cannot be read: %s", num_skipped, shorten(skipped))
    fewest = min(num_images, details.get("sampling", {}).get("num_images", num_images))
    if fewest < extractor.num_features:
        logger.warning(
            "%d images are fewer than the %d features: the Fréchet distance says more about their number than about "
            "the models. Compare it only with distances of as many images.",
            fewest,
            extractor.num_features,
        )
    protocol: dict[str, Any] = {
        "dataset": {
            "name": public_name(args.dataset),
            "revision": revision,
            "split": args.split,
            "num_images": num_images,
            "num_skipped": num_skipped,
        },
        "preprocessing": describe_preprocessing(processor),
        "features": extractor.describe(),
        **details,
        "batch_size": args.batch_size,
        "device": state.device.type if state.device.type != "cpu" else f"cpu ({platform.machine()})",
        "versions": {
            "hf_vq": __version__,
            "torch": torch.__version__,
            "torchmetrics": torchmetrics.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
        },
    }
    results = [{**subject.describe(), "metrics": values} for subject, values in zip(subjects, metrics, strict=True)]
    report = Report(subjects[0].kind, protocol, results, picture if state.is_main_process else None)
    if state.is_main_process:
        report.save(args.output_dir)
        if args.update_cards:
            update_cards(report, [(subject.name, subject.model) for subject in subjects])
    return report
