"""The data sets of a run, from its arguments."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import torch

from hf_vq.data.held_out import HeldOut, hold_out
from hf_vq.data.images import ImageDataset, ImageStream
from hf_vq.data.places import UnknownSplitError
from hf_vq.data.sources import load_images
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.configuration_vq_classifier import VQImageClassificationConfig
from hf_vq.training.arguments import ImageTrainingArguments
from hf_vq.training.base_arguments import NO_SPLIT
from hf_vq.training.order import is_stream
from hf_vq.utils.processes import on_each_node, processes_of_run, require_equal_on_nodes

logger = logging.getLogger(__name__)


def build_image_datasets(
    args: ImageTrainingArguments, config: VQConfig | VQImageClassificationConfig
) -> tuple[Any, Any]:
    """Loads the training and the held-out images that a run names.

    Augmentation is for training only. With `eval_split` "auto", `eval_fraction` of the training images is held out,
    the same ones for the same seed, and the data set says which (`held_out`); a stream cannot be split so.

    Args:
        args: The settings.
        config: The model's, which says the size, the channels and the range of the pixels.

    Returns:
        Training data, and held-out data or None.

    Raises:
        ValueError: No data set is named, or it is empty.
    """
    if args.dataset is None:
        raise ValueError(
            "No data set is named. Give --dataset: a Hub id, a folder of images, parquet or tar files, or "
            "noto-emoji-32."
        )
    state = processes_of_run(args.use_cpu, args.ddp_timeout)
    # One process of a node lists, downloads and converts; the others get its list, or read its cache.
    train, held_out = on_each_node(lambda: _load_splits(args), state)
    require_equal_on_nodes(None if args.streaming else len(train), f"images of {args.dataset!r}", state)
    record: HeldOut | None = None
    if args.drawn_fraction > 0 and not args.streaming and len(train) > 1:
        train, held_out, record = hold_out(train, args.dataset, args.train_split, args.drawn_fraction, args.seed)
    elif held_out is None and args.eval_split != NO_SPLIT:
        logger.warning("Nothing is held out, so nothing will be measured: name an eval_split.")

    image_size = config.image_size
    common: dict[str, Any] = {"num_channels": config.num_channels, "pixel_range": config.pixel_range}
    common |= {"seed": args.seed, "strict": args.strict}
    augmentation: dict[str, Any] = {"random_crop": args.random_crop, "random_flip": args.random_flip}
    augmentation |= {"fast_jpegs": args.fast_jpegs}
    if args.streaming:
        place: dict[str, Any] = {"rank": state.process_index, "world_size": state.num_processes}
        stream = ImageStream(train, image_size, shuffle_buffer=args.shuffle_buffer, **augmentation, **common, **place)
        return stream, None if held_out is None else ImageStream(held_out, image_size, **common, **place)
    train_images = ImageDataset(train, image_size, **augmentation, **common)
    eval_images = None if held_out is None else ImageDataset(held_out, image_size, **common)
    if eval_images is not None:
        eval_images.held_out = record
    if state.is_main_process:
        for images in (train_images, eval_images):
            if images is not None and len(images) <= args.check_images_up_to:
                images.find_bad_images()
    return train_images, eval_images


def check_images(dataset: Any, config: VQConfig | VQImageClassificationConfig, which: str) -> None:
    """Makes sure that a data set gives pixels, and of the model's range where the data set says its own.

    Of a map-style data set that is no `ImageDataset`, and of a stream of `datasets`, the first item is looked at.

    Args:
        dataset: The data set, an `ImageDataset` or any other; None if there is none.
        config: The model's.
        which: What to call the data set.

    Raises:
        ValueError: The items have no `pixel_values`, or the ranges differ.
    """
    if not isinstance(dataset, (ImageDataset, ImageStream)):
        _check_first_item(dataset, config, which)
    found = getattr(dataset, "pixel_range", config.pixel_range)
    if list(found) != config.pixel_range:
        raise ValueError(
            f"The {which} set gives pixels in {list(found)}, but the model's configuration says "
            f"`pixel_range={config.pixel_range}`. Make the data set with `pixel_range=model.config.pixel_range`."
        )


def _check_first_item(dataset: Any, config: VQConfig | VQImageClassificationConfig, which: str) -> None:
    if isinstance(dataset, dict):  # a DatasetDict
        found, name = f"is a dict of {', '.join(map(repr, dataset))}", f"dataset[{next(iter(dataset), 'train')!r}]"
    elif not is_stream(dataset) and not hasattr(dataset, "__len__"):
        raise ValueError(
            f"The {which} set has no `__len__`, which rows by index need, for each epoch takes every row once. Give "
            "its class one, or make it a `torch.utils.data.IterableDataset`."
        )
    elif isinstance(dataset, datasets.IterableDataset) or (not is_stream(dataset) and len(dataset)):
        first = next(iter(dataset), {}) if isinstance(dataset, datasets.IterableDataset) else dataset[0]
        if isinstance(first, Mapping) and isinstance(first.get("pixel_values"), (torch.Tensor, np.ndarray)):
            return
        kind = f"items of type {type(first).__name__}"
        what = f"dicts of {', '.join(map(repr, first))}" if isinstance(first, Mapping) else kind
        found, name = f"gives {what}", "dataset"
    else:
        return
    wrapper = "ImageStream" if isinstance(dataset, datasets.IterableDataset) else "ImageDataset"
    raise ValueError(
        f"The {which} set {found}, but a trainer takes dicts with `pixel_values`, a tensor. Wrap images: "
        f"`hf_vq.data.{wrapper}({name}, {config.image_size}, pixel_range=model.config.pixel_range)`."
    )


def _load_splits(args: ImageTrainingArguments) -> tuple[Any, Any]:
    train = _load(args, args.train_split)
    try:
        return train, None if args.named_eval_split is None else _load(args, args.named_eval_split)
    except UnknownSplitError as error:
        raise ValueError(
            f"{error}; with --eval_split auto, a part of the train split is held out, with none, nothing"
        ) from None


def _load(args: ImageTrainingArguments, split: str) -> Any:
    assert args.dataset is not None
    return load_images(
        args.dataset,
        split,
        streaming=args.streaming,
        image_column=args.image_column,
        revision=args.dataset_revision,
    )
