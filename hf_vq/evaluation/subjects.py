"""The models that are measured: loaded, told apart, and checked for whether they can be compared."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_vq.data.held_out import HeldOut, read_held_out
from hf_vq.evaluation.arguments import split_revision
from hf_vq.evaluation.images import describe_preprocessing, resized
from hf_vq.hub.folders import SPLIT_FILE
from hf_vq.hub.loading import load_model
from hf_vq.hub.repository import fetch_file, require_findable
from hf_vq.hub.samples import local_model
from hf_vq.kinds import KINDS, kind_of
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.pixel_range_vq import pixel_range_of
from hf_vq.utils.hashes import weights_sha256
from hf_vq.utils.text import plain_id

logger = logging.getLogger(__name__)


class Subject:
    """A model that is measured, and how it is called in the results.

    Args:
        name: Folder or Hub id, perhaps with ``@revision``.
        label: Its name in tables.
        model: The tokenizer or generator, in eval mode on its device.
        processor: Its image processor.
    """

    def __init__(self, name: str, label: str, model: Any, processor: VQImageProcessor) -> None:
        self.name, self.label, self.model, self.processor = name, label, model, processor

    @property
    def kind(self) -> str:
        """`"generator"` or `"tokenizer"`."""
        return kind_of(self.model).noun

    def describe(self) -> dict[str, Any]:
        """For the results: name, commit, precision, and hash of the weights."""
        path = split_revision(self.name)[0]
        return {
            "name": self.label if Path(path).expanduser().is_dir() else plain_id(path),
            "label": self.label,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "weights_sha256": weights_sha256(self.model),
        }


def load_subjects(names: Sequence[str], *, allow_unverified: bool = False) -> list[Subject]:
    """Loads models of one kind; `allow_unverified` as for `from_hub`.

    Raises:
        ValueError: Some are tokenizers and some generators, one is neither, or one has pixels in neither range.
    """
    for name in names:
        require_findable(split_revision(name)[0], "no model")
    subjects = []
    for name, label in zip(names, short_names(names), strict=True):
        model, processor = load_model(*split_revision(name), allow_unverified=allow_unverified)
        if kind_of(model).measurement is None:
            nouns = dict.fromkeys(f"a {kind.noun}" for kind in KINDS.values() if kind.measurement)
            raise ValueError(
                f"'{name}' is neither {' nor '.join(nouns)} but a {type(model).__name__}, whose numbers its training "
                "writes into its card"
            )
        if pixel_range_of(processor) is None:
            raise ValueError(
                f"'{name}' has an image processor that normalizes pixels to a range of its own, so its errors cannot "
                "be told on [0, 1]. Only models with pixels in [-1, 1] or in [0, 1] are measured"
            )
        subjects.append(Subject(name, label, model.eval(), processor))
    kinds = {subject.kind for subject in subjects}
    if len(kinds) > 1:
        found = ", ".join(f"'{subject.name}' is a {subject.kind}" for subject in subjects)
        raise ValueError(f"tokenizers and generators have no numbers in common: {found}. Compare one kind at a time")
    return subjects


def held_out_by(subjects: Sequence[Subject]) -> HeldOut:
    """What says which images the runs of the models held out.

    A model whose run held nothing out, such as the one that another was fine-tuned from, is measured on the images
    that the others held out; a warning names it.

    Raises:
        ValueError: No model says it, or two held out others.
    """
    records: dict[str, HeldOut] = {}
    for subject in subjects:
        name, revision = split_revision(subject.name)
        folder = local_model(name)
        try:
            if folder is not None:  # beside a run's final model, the run itself says the names
                small, whole = folder / SPLIT_FILE, folder.absolute().parent / SPLIT_FILE
                file = whole if small.exists() and whole.exists() else small
            else:
                file = fetch_file(name, SPLIT_FILE, getattr(subject.model.config, "_commit_hash", None) or revision)
            records[subject.name] = read_held_out(file)
        except FileNotFoundError:
            continue
    if not records:
        names = " nor ".join(f"'{subject.name}'" for subject in subjects)
        raise ValueError(
            f"Nothing beside {names} says which images were held out ({SPLIT_FILE}): the run held nothing out of its "
            "training split. Name a split"
        )
    first = next(iter(records))
    for name, record in records.items():
        if dataclasses.replace(record, names=None) != dataclasses.replace(records[first], names=None):
            raise ValueError(f"'{first}' and '{name}' held out different images: name a split")
    for subject in subjects:
        if subject.name not in records:
            logger.warning(
                "'%s' does not say what its run held out: it is measured on the images that '%s' held out, of which "
                "it may have seen some.",
                subject.name,
                first,
            )
    return records[first]


def common_processor(subjects: Sequence[Subject], image_size: int | None = None) -> VQImageProcessor:
    """The image processor of all models; they may differ in the range of the pixels, not in what the image shows.

    Raises:
        ValueError: They make images ready in different ways, or `image_size` does not suit a model.
    """
    processors = [subject.processor for subject in subjects]
    if image_size is not None:
        if subjects[0].kind == "generator":
            raise ValueError("generators make images of one size: leave image_size out")
        for subject in subjects:
            factor = subject.model.config.downsample_factor
            if image_size % factor:
                raise ValueError(f"'{subject.name}' needs an image_size that {factor} divides, got {image_size}")
        processors = [resized(processor, image_size) for processor in processors]
    ways = [describe_preprocessing(processor) for processor in processors]
    for subject, way in zip(subjects, ways, strict=True):
        differing = [f"{name} {ways[0][name]!r} and {way[name]!r}" for name in way if way[name] != ways[0][name]]
        if differing:
            sized = subject.kind == "tokenizer" and way["channels"] == ways[0]["channels"]
            advice = "Give one image_size for all" if sized else "Evaluate them one by one"
            raise ValueError(
                f"'{subjects[0].name}' and '{subject.name}' make images ready in different ways, so their numbers "
                f"cannot be compared: {'; '.join(differing)}. {advice}"
            )
    return processors[0]


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of names, as many as tell them apart; of the model of a run, `out/final`, the run's."""
    parts = [Path(name).expanduser().parts for name in names]
    parts = [part[:-1] if part[-1:] == ("final",) and len(part) > 1 else part for part in parts]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(names)
