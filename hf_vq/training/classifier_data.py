"""The classes of a classifier's run: from its images to its configuration, and whether the labels fit."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np

from hf_vq.modeling.configuration_vq_classifier import VQImageClassificationConfig
from hf_vq.training.order import is_stream
from hf_vq.utils.text import shorten

NO_LABELS = (
    "The {} set has no labels, nothing to learn: use a folder of images for each class, or a data set with a column "
    "'label' of whole numbers (`dataset.class_encode_column('label')` of datasets makes them of names)."
)


MISSING_LABELS = (
    "The {} set has images without a label, {}. A classifier learns from labels only: leave these images out, with "
    "`dataset.filter(lambda label: label is not None, input_columns='label')` of datasets for one."
)


def classifier_config(config: VQImageClassificationConfig, dataset: Any) -> VQImageClassificationConfig:
    """A configuration with the number and the names of the classes of the training images.

    Args:
        config: Everything else.
        dataset: `ImageDataset` or `ImageStream` of the training images.

    Raises:
        ValueError: There are no labels, or a stream does not declare its classes.
    """
    feature = (dataset.source.features or {}).get("label")
    if feature is None:
        raise ValueError(NO_LABELS.format("training"))
    names = getattr(feature, "names", None)
    if names is None:
        labels = _all_labels(dataset, "training")
        if labels is None:
            raise ValueError(
                "The stream does not say how many classes there are. Read it without --streaming, or give its column "
                "'label' the feature ClassLabel."
            )
        names = [f"LABEL_{number}" for number in range(int(labels.max()) + 1)]
    if len(names) < 2:
        raise ValueError(f"The training set has no two classes to tell apart, only: {', '.join(names) or 'none'}.")
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = "single_label_classification"
    return config


def check_problem(config: VQImageClassificationConfig) -> None:
    """Makes sure that a classifier tells classes apart, of which an image has one.

    Raises:
        ValueError: It is made for another problem.
    """
    if config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            "ClassifierTrainer trains classifiers of one label for an image, but "
            f"`problem_type={config.problem_type!r}`. transformers' Trainer trains the others."
        )


def check_labels(dataset: Any, num_labels: int, which: str) -> None:
    """Makes sure that the labels of a data set fit a classifier, before the first step.

    Of an `ImageDataset` every label is looked at, of another map-style data set the first, of a stream none.

    Args:
        dataset: The data set.
        num_labels: Classes of the classifier.
        which: What to call the data set.

    Raises:
        ValueError: There are no labels, or some are out of range.
    """
    if is_stream(dataset):
        return
    labels = _all_labels(dataset, which)
    if labels is None:
        first = dataset[0].get("label")
        if first is None:
            raise ValueError(NO_LABELS.format(which))
        labels = _whole_numbers([first])
    if labels.min() < 0 or labels.max() >= num_labels:
        raise ValueError(
            f"The {which} set has labels from {labels.min()} to {labels.max()}, but the model has the classes 0 to "
            f"{num_labels - 1}."
        )


def _all_labels(dataset: Any, which: str) -> np.ndarray | None:
    """The labels of all rows; None if the data set would have to be read for them, or has none."""
    source = getattr(dataset, "source", None)
    if isinstance(source, datasets.Dataset) and "label" in source.column_names:
        labels = source.with_format(None)["label"][:]
    elif isinstance(source, (list, tuple)):
        labels = [row.get("label") if isinstance(row, dict) else None for row in source]
    else:
        return None
    missing = [row for row, label in enumerate(labels) if label is None]
    if len(missing) == len(labels):
        raise ValueError(NO_LABELS.format(which))
    if missing:
        rows = f"{len(missing)} of {len(labels)}: rows {shorten([str(row) for row in missing])}"
        raise ValueError(MISSING_LABELS.format(which, rows))
    return _whole_numbers(labels)


def _whole_numbers(labels: list[Any]) -> np.ndarray:
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(
            f"Labels must be whole numbers, one for an image, got {labels[0]!r}. "
            "`dataset.class_encode_column('label')` of datasets makes them of names."
        )
    return found
