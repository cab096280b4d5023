"""The token data sets of a generator's run, from its arguments, and whether they fit its tokenizer and its classes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_vq.data.held_out import HeldOut, draw_tokenized
from hf_vq.data.manifest import Manifest
from hf_vq.data.token_stream import TokenStream
from hf_vq.data.tokens import load_token_dataset, read_manifest
from hf_vq.hub.loading import load_tokenizer
from hf_vq.modeling.configuration_maskgit import MaskGitConfig
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.masking_maskgit import draw_mask, draw_uniform, mask_ratio
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.training.arguments import GeneratorTrainingArguments
from hf_vq.training.base_arguments import NO_SPLIT
from hf_vq.training.order import is_stream
from hf_vq.utils.hashes import json_sha256
from hf_vq.utils.processes import on_each_node, on_every_process, processes_of_run, require_equal_on_nodes

logger = logging.getLogger(__name__)

COLUMNS = ("image_tokens", "label")


def load_run_tokenizer(args: GeneratorTrainingArguments) -> tuple[VQModel, VQImageProcessor]:
    """The tokenizer that a run names, and its image processor.

    Raises:
        ValueError: None is named.
        FileNotFoundError: There is none under that name.
        HubError: The Hub does not give it.
    """
    if args.tokenizer is None:
        raise ValueError(
            "No tokenizer is named. Give --tokenizer: the folder or Hub id of the one that made the tokens."
        )
    load = partial(load_tokenizer, args.tokenizer, args.tokenizer_revision, allow_unverified=args.allow_unverified)
    return on_every_process(load, processes_of_run(args.use_cpu, args.ddp_timeout))


def build_token_datasets(args: GeneratorTrainingArguments, tokenizer: VQModel) -> tuple[Any, Any]:
    """Loads the training and the held-out tokens that a run names.

    With `eval_split` "auto", `eval_fraction` of the training images is held out, with all their views and the same
    ones for the same seed; a stream cannot be split so. Of held-out images only the first view is used, the image as
    its processor takes it.

    Args:
        args: The settings.
        tokenizer: What must have made the tokens.

    Returns:
        Training data, and held-out data or None: rows with `image_tokens` and, where there is one, `label`.

    Raises:
        ValueError: No data set is named, another tokenizer made it, or it has no such split.
        FileNotFoundError: There is none under that name.
        HubError: The Hub does not give it.
    """
    tokens = args.tokens
    if tokens is None:
        raise ValueError("No token data set is named. Give --tokens: a folder that hf-vq tokenize wrote, or a Hub id.")

    def load() -> tuple[Manifest, Any, Any]:
        manifest = read_manifest(tokens, revision=args.tokens_revision, allow_unverified=args.allow_unverified)
        held_out = None if args.named_eval_split is None else _load(args, args.named_eval_split, tokenizer)
        return manifest, _load(args, args.train_split, tokenizer, args.streaming), held_out

    state = processes_of_run(args.use_cpu, args.ddp_timeout)
    manifest, rows, held_out = on_each_node(load, state)  # one process downloads and converts
    num_views = len(manifest["views"]["names"])
    if args.streaming:
        place = {"rank": state.process_index, "world_size": state.num_processes}
        names = manifest.get("label_names")
        train: Any = TokenStream(rows, names, seed=args.seed, shuffle_buffer=args.shuffle_buffer, **place)
        num_images = train.num_images // num_views
    else:
        train, num_images = _columns(rows), len(rows) // num_views
    require_equal_on_nodes(num_images, f"tokenized images of {tokens!r}", state)
    if held_out is not None:
        return train, _columns(held_out).select(range(0, len(held_out), num_views))
    if args.streaming or args.drawn_fraction == 0 or num_images < 2:
        if args.eval_split != NO_SPLIT:
            logger.warning("Nothing is held out, so nothing will be measured: name an eval_split.")
        return train, None
    count = max(1, round(args.drawn_fraction * num_images))
    held, kept = draw_tokenized(num_images, count, args.seed)
    held_out = train.select(held * num_views)
    keys = rows.data.column("key").to_pylist()[::num_views]
    names = [keys[number] for number in held]
    name = (manifest.get("dataset") or {}).get("name") or tokens
    held_out.held_out = HeldOut(
        name, args.train_split, num_images, count, args.seed, json_sha256(keys), names, tokens=True
    )
    return train.select((kept[:, None] * num_views + np.arange(num_views)).flatten()), held_out


def generator_config(tokenizer: VQModel, dataset: Any, fields: dict[str, Any]) -> MaskGitConfig:
    """The configuration of a generator for a tokenizer and its tokens.

    Args:
        tokenizer: Says the grid and the vocabulary.
        dataset: The training tokens; their labels say number and names of the classes, unless `fields` do.
        fields: Further fields.

    Raises:
        ValueError: `fields` name the tokenizer's configuration.
    """
    if "vq_config" in fields:
        raise ValueError("model.vq_config is the tokenizer's and cannot be set: give another --tokenizer.")
    if isinstance(dataset, TokenStream):
        label, names = dataset.first_example().get("label"), dataset.label_names
        if "num_classes" not in fields and label is not None and not names:
            raise ValueError("The stream does not say how many classes there are: give --num_classes.")
    else:
        label = dataset.features.get("label")
        names = getattr(label, "names", None)
    if "num_classes" not in fields:
        num_classes = 0 if label is None else len(names) if names else _labels(dataset).max() + 1
        fields = {**fields, "num_classes": int(num_classes)}
    if names and len(names) == fields["num_classes"]:
        fields = {
            **fields,
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
        }
    vq_config = copy.deepcopy(tokenizer.config)
    vq_config._name_or_path = ""  # it would publish where somebody's files lie
    return MaskGitConfig(vq_config=vq_config, **fields)


def check_tokens(dataset: Any, config: MaskGitConfig, which: str) -> None:
    """Makes sure that a data set fits a generator, before the first step.

    Of a `datasets.Dataset` every token and label is looked at, of another data set the columns of the first row. The
    rows of a `TokenStream` are looked at when they are read.

    Args:
        dataset: The data set.
        config: The generator's.
        which: What to call the data set.

    Raises:
        ValueError: It is another stream, lacks a column, has another grid, or tokens or labels out of range.
    """
    if is_stream(dataset) and not isinstance(dataset, TokenStream):
        raise ValueError(
            f"The {which} set must be map-style, with __getitem__ and __len__, or a `TokenStream`, not {type(dataset)}"
        )
    row = dataset.first_example() if isinstance(dataset, TokenStream) else dataset[0]
    if "image_tokens" not in row:
        raise ValueError(f"The {which} set has no 'image_tokens', only {list(row)}: use `load_token_dataset`.")
    shape, groups = tuple(row["image_tokens"].shape), () if config.num_groups == 1 else (config.num_groups,)
    free = config.position_type == "rotary" and len(shape) == 2 + len(groups)
    if shape != ((shape[:2] if free else config.grid_size) + groups):
        raise ValueError(
            f"The {which} set has tokens of the shape {shape}, the model is made for {config.grid_size + groups}: "
            "another tokenizer or another image size made them."
        )
    if config.num_classes and "label" not in row:
        raise ValueError(
            f"The model has num_classes={config.num_classes}, but the {which} set has no labels. Train without "
            "classes (--num_classes 0), or tokenize images with labels: a folder of images for each class."
        )
    if isinstance(dataset, TokenStream):
        dataset.check = partial(_check_example, config=config, which=which)
    if isinstance(dataset, datasets.Dataset):
        _check_ids(_values(dataset, "image_tokens"), config, which)
        if config.num_classes:
            labels = _labels(dataset)
            _check_labels(labels, config.num_classes, which)
            if labels.max() == -1:
                raise ValueError(
                    f"The model has num_classes={config.num_classes}, but no image of the {which} set has a label. "
                    "Train without classes: --num_classes 0."
                )


def _check_example(example: dict[str, Any], config: MaskGitConfig, which: str) -> None:
    """Makes sure that a row of a stream fits a generator."""
    _check_ids([example["image_tokens"].numpy()], config, which)
    if config.num_classes:
        _check_labels(np.array([example.get("label", -1)]), config.num_classes, which)


def _check_ids(arrays: Iterable[np.ndarray], config: MaskGitConfig, which: str) -> None:
    stride = 0 if config.vq_config.share_codebook else config.codebook_size
    first = np.arange(config.num_groups) * stride
    for tokens in arrays:
        tokens = tokens.reshape(-1, config.num_groups)
        low, high = tokens.min(0), tokens.max(0)
        if (low < first).any() or (high >= first + config.codebook_size).any():
            expected = ", ".join(f"{start} to {start + config.codebook_size - 1}" for start in first)
            raise ValueError(
                f"The {which} set holds tokens from {low.min()} to {high.max()}, the tokenizer has the ids {expected}"
                f"{' (one range a group)' if config.num_groups > 1 else ''}: another one made them. Tokenize the "
                "images with the model's tokenizer."
            )


def _check_labels(labels: np.ndarray, num_classes: int, which: str) -> None:
    low, high = labels.min(), labels.max()
    if low < -1 or high >= num_classes:
        raise ValueError(
            f"The {which} set has labels from {low} to {high}, but the model has num_classes={num_classes}: labels "
            f"must be 0 to {num_classes - 1}, or -1 for none. Give --num_classes {high + 1}."
        )


def _labels(dataset: datasets.Dataset) -> np.ndarray:
    return np.concatenate(list(_values(dataset, "label")))


def _values(dataset: datasets.Dataset, column: str) -> Iterator[np.ndarray]:
    """The numbers of a column, chunk by chunk and flat; without going through rows, which takes a hundred times."""
    for chunk in dataset.data.column(column).chunks:
        while pa.types.is_nested(chunk.type):
            chunk = chunk.flatten()
        if len(chunk):
            yield chunk.to_numpy(zero_copy_only=False)


class FixedMasks(Dataset[dict[str, Any]]):
    """A data set whose rows have a `mask` that is always the same, and their `index`.

    Masks are drawn as training draws them, but from the seed and the row's number alone. So measures do not move with
    the batch size, the number of processes, or chance, and can be compared over time.

    Args:
        dataset: Map-style, with `image_tokens`.
        config: Says the schedule and the kind of count.
        seed: Of the masks.
    """

    def __init__(self, dataset: Any, config: MaskGitConfig, seed: int) -> None:
        self.dataset = dataset
        self.config = config
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        generator = seeded_generator(self.seed, index)
        ratio = mask_ratio(draw_uniform((1,), generator, "cpu"), self.config.mask_schedule)
        mask: Tensor = draw_mask((1, *row["image_tokens"].shape), ratio, self.config.mask_count, generator, "cpu")
        return {**row, "mask": mask[0], "index": index}


def seeded_generator(seed: int, index: int) -> torch.Generator:
    """A generator of random numbers for one image, on the CPU, so that it is the same everywhere."""
    return torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)


def _load(args: GeneratorTrainingArguments, split: str, tokenizer: VQModel, streaming: bool = False) -> Any:
    assert args.tokens is not None
    return load_token_dataset(
        args.tokens,
        split,
        tokenizer=tokenizer,
        revision=args.tokens_revision,
        streaming=streaming,
        allow_unverified=args.allow_unverified,
    )


def _columns(rows: datasets.Dataset) -> datasets.Dataset:
    """What trainers use of token rows."""
    return rows.select_columns([name for name in COLUMNS if name in rows.column_names])
