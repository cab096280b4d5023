"""Image data sets to token data sets: in any number of processes, restartable, the same bytes however it went.

That holds on one kind of device, with one number of CPU threads and the same versions, as sums in another order can
flip a near tie between codes. The manifest records them, and a run does not go on with others.

The rows of a split are cut into shards, and a shard into batches, by their numbers alone. The main process looks which
shards are missing and shares them out, and each process opens no other files than those in which its rows lie. A shard
is written aside and renamed when it is whole. So the files depend neither on the number of processes nor on how often
they were killed.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import torch
import transformers
from accelerate import PartialState

from hf_vq.data.manifest import warn_if_unverified
from hf_vq.data.places import AnyDataset
from hf_vq.data.reading import Row, slice_rows
from hf_vq.data.shards import ShardWriter, Views
from hf_vq.data.sources import image_splits, load_images, pinned_revision, require_place
from hf_vq.data.streams import StreamParts
from hf_vq.data.token_folder import (
    ROWS_KEY,
    begin,
    finish,
    go_on,
    locked,
    missing_files,
    missing_shards,
    note_rows,
    set_damaged_shards_aside,
    shard_path,
)
from hf_vq.data.tokens import (
    FORMAT,
    Manifest,
    push_token_dataset,
    read_manifest,
    token_dtype,
    token_features,
    tokenizer_name,
)
from hf_vq.hub.loading import load_tokenizer
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.modeling.version_vq import __version__
from hf_vq.utils.hashes import json_sha256, weights_sha256
from hf_vq.utils.processes import (
    PATIENCE,
    on_each_node,
    on_every_process,
    on_main_process,
    processes_of_run,
    require_equal_on_nodes,
    require_same_places,
    require_shared_folder,
)
from hf_vq.utils.progress import progress
from hf_vq.utils.text import counted, public_name

logger = logging.getLogger(__name__)


@dataclass
class TokenizationArguments:
    """What to tokenize, by what, and how; the help of each field is its documentation."""

    tokenizer: str = field(metadata={"help": "Folder or Hub id of the tokenizer."})
    dataset: str = field(
        metadata={"help": "Hub id, folder of images, parquet or tar file(s), or noto-emoji-32, the sample."},
    )
    output_dir: str = field(metadata={"help": "Folder for the token data set; seen by all processes."})
    tokenizer_revision: str | None = field(
        default=None, metadata={"help": "Commit, branch or tag of a Hub tokenizer."}
    )
    allow_unverified: bool = field(
        default=False,
        metadata={"help": "Take files of the cache that cannot be verified, since the Hub cannot be asked."},
    )

    # Data
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag of a Hub data set."})
    splits: list[str] = field(default_factory=list, metadata={"help": "Splits to tokenize (all if not given)."})
    image_column: str | None = field(default=None, metadata={"help": "Column with the images (found if not given)."})
    streaming: bool = field(default=False, metadata={"help": "Read the data set as a stream, without storing it."})
    strict: bool = field(
        default=False, metadata={"help": "Stop at an image that cannot be read, instead of skipping and naming it."}
    )

    # Views of each image
    flip: bool = field(default=False, metadata={"help": "Tokenize the mirror image of each view, too."})
    num_crops: int = field(default=0, metadata={"help": "Random crops of each image, besides the whole one."})
    crop_scale: float = field(default=0.9, metadata={"help": "Side of a crop in parts of the image's shorter side."})
    seed: int = field(default=0, metadata={"help": "Seed of the crops."})

    # Files and batches
    images_per_shard: int = field(default=10_000, metadata={"help": "Images of one file; what a kill can cost."})
    batch_size: int = field(default=64, metadata={"help": "Views per process and forward pass."})
    num_threads: int = field(default=4, metadata={"help": "Threads of each process that read images."})

    # Machine and reports
    cpu_threads: int = field(
        default=1, metadata={"help": "Threads of each process that compute on the CPU; tokens can depend on it."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU although an accelerator is there."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bar."})
    push_to_hub: bool = field(default=False, metadata={"help": "Publish the data set when it is finished."})
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "Where to publish it (a repository with the name of output_dir if not given)."}
    )
    hub_private_repo: bool = field(default=False, metadata={"help": "Make that repository private."})

    def __post_init__(self) -> None:
        for name, least in (
            ("num_crops", 0),
            ("images_per_shard", 1),
            ("batch_size", 1),
            ("num_threads", 1),
            ("cpu_threads", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale must be in (0, 1], got {self.crop_scale}.")
        for split in self.splits:
            if not re.fullmatch(r"\w+", split):
                raise ValueError(f"splits must be names such as train, got {split!r}: whole splits are tokenized.")


def tokenize_dataset(args: TokenizationArguments) -> Manifest:
    """Tokenizes the splits of an image data set; all processes of a run call it with the same arguments.

    Args:
        args: The settings.

    Returns:
        The finished manifest.

    Raises:
        ValueError: `output_dir` was begun with other settings, or no image can be read, or one cannot under `strict`.
        FileNotFoundError: There are no images, or no tokenizer.
        FileExistsError: Another run works in `output_dir`.
        OSError: `output_dir` cannot be written to, or is another folder on another node, or the disk is full.
        HubError: The tokenizer cannot be fetched, or the tokens cannot be published.
    """
    # A barrier waits for the slowest process, which may have a whole shard more to write.
    state = processes_of_run(args.use_cpu, timeout=PATIENCE)
    with locked(Path(args.output_dir), state):
        require_shared_folder(Path(args.output_dir), "the folder", state)
        require_same_places([args.tokenizer, args.dataset], state)
        _tokenize_splits(args, state)
    if args.push_to_hub and state.is_main_process:
        repo_id = args.hub_dataset_id or Path(args.output_dir).resolve().name
        logger.info(
            "Published: %s", push_token_dataset(args.output_dir, repo_id, private=args.hub_private_repo or None)
        )
    return read_manifest(args.output_dir)


def _tokenize_splits(args: TokenizationArguments, state: PartialState) -> None:
    require_place(args.dataset)
    load = partial(load_tokenizer, args.tokenizer, args.tokenizer_revision, allow_unverified=args.allow_unverified)
    model, processor = on_every_process(load, state)  # one process of a node downloads, the others read its cache
    model.to(state.device)
    revision, splits = on_each_node(lambda: _find_splits(args), state)
    for split in splits:
        find = partial(load_images, args.dataset, split, streaming=args.streaming, image_column=args.image_column)
        images = on_each_node(partial(find, revision=revision), state)  # listed by one process of a node
        count = len(images) if isinstance(images, datasets.Dataset) else StreamParts(images).num_rows
        require_equal_on_nodes(count, f"images of {args.dataset!r} ({split})", state)
        tokenize_split(model, processor, images, split, args, revision, state)


def _find_splits(args: TokenizationArguments) -> tuple[str | None, list[str]]:
    """The commit of the images, and the splits to tokenize."""
    revision = pinned_revision(args.dataset, args.dataset_revision)
    return revision, args.splits or image_splits(args.dataset, revision=revision)


def tokenize_split(
    model: VQModel,
    processor: VQImageProcessor,
    images: AnyDataset,
    split: str,
    args: TokenizationArguments,
    dataset_revision: str | None,
    state: PartialState,
) -> None:
    """Writes this process's shards of a split; the main process then completes the manifest.

    Args:
        model: The tokenizer, in eval mode on its device.
        processor: Its image processor.
        images: What `load_images` returned.
        split: The split's name.
        args: The settings.
        dataset_revision: For the manifest: the commit of a Hub data set.
        state: The processes of the run.
    """
    folder, size = Path(args.output_dir), args.images_per_shard
    views = Views(args.num_crops, args.crop_scale, args.flip, args.seed)
    label = images.features.get("label")
    settings = _settings(model, processor, views, label, args, dataset_revision)
    stream = None if isinstance(images, datasets.Dataset) else StreamParts(images)
    num_images = len(images) if stream is None else stream.num_rows

    def prepare() -> None:
        begin(folder, settings, split, num_images)
        set_damaged_shards_aside(folder, settings, split)

    on_main_process(prepare, state)
    record = go_on(folder, settings, split, num_images, args.strict)
    # Decided by the main process for all: one that looks late would see what another has already written again.
    finished = on_main_process(lambda: "shards" in record and not missing_files(folder, record), state)
    if finished:
        warn_if_unverified(record, split, f"'{folder}'")
        logger.info("%s: finished already", split)
        return
    if stream is not None and num_images is None:
        num_images = _count_rows(stream, split, record, state)
        go_on(folder, settings, split, num_images, args.strict)
        on_main_process(lambda: note_rows(folder, split, stream.rows), state)
    assert num_images is not None
    sizes = [min(size, num_images - first) for first in range(0, num_images, size)]
    missing = on_main_process(lambda: missing_shards(folder, split, len(sizes)), state)
    first, end = (len(missing) * (state.process_index + more) // state.num_processes for more in (0, 1))
    mine = missing[first:end]
    silent = args.disable_tqdm or not state.is_main_process
    tokens, rows_of = settings["image_tokens"], _RowsOf(images, stream)
    processes = counted(state.num_processes, "process", "processes")
    logger.info("%s: tokenizing in %s on %s", split, processes, model.device.type)
    with (
        _computing_threads(args.cpu_threads),
        ThreadPoolExecutor(args.num_threads) as executor,
        progress(sum(sizes[number] for number in mine), unit="images", desc=split, silent=silent) as bar,
    ):
        writer = ShardWriter(
            model,
            processor,
            views,
            token_features(math.prod(tokens["shape"]), tokens["num_codes"], label),
            json_sha256(settings),
            executor,
            batch_size=args.batch_size,
            root=Path(args.dataset).expanduser(),
            strict=args.strict,
            on_image=bar.update,
        )
        for number in mine:
            rows = rows_of.range(number * size, number * size + sizes[number])
            writer.write(shard_path(folder, split, number), rows)
    state.wait_for_everyone()
    on_main_process(lambda: finish(folder, split, len(sizes)), state)


def _count_rows(stream: StreamParts, split: str, record: dict[str, Any], state: PartialState) -> int:
    """The rows of a stream that does not say how many it has; an earlier run may have counted them; a collective."""
    counts = record.get(ROWS_KEY, [])
    if len(counts) == len(stream):
        stream.rows = counts
    else:
        logger.info("%s: the images of the stream are counted first, which reads it once more", split)
        stream.count(state)
    return stream.num_rows or 0


class _RowsOf:
    """The rows of a data set by their numbers; neighboring ranges of a stream are read in one go."""

    def __init__(self, images: AnyDataset, stream: StreamParts | None) -> None:
        self._images, self._stream = images, stream
        self._rows: Iterator[Row] = iter(())
        self._next = -1

    def range(self, first: int, end: int) -> Iterator[Row]:
        """The rows from number `first` to before number `end`."""
        if self._stream is None:
            return slice_rows(self._images, first, end)
        if first != self._next:
            self._rows = self._stream.rows_from(first)
        self._next = end
        return islice(self._rows, end - first)


def _settings(
    model: VQModel,
    processor: VQImageProcessor,
    views: Views,
    label: Any,
    args: TokenizationArguments,
    dataset_revision: str | None,
) -> Manifest:
    """What decides the files' bytes, ready for JSON."""
    blank = PIL.Image.new("RGB" if processor.num_channels == 3 else "L", (64, 64))
    with torch.no_grad():
        tokens = model.encode(views(blank, 0, processor)[:1].to(model.device)).image_tokens
    settings = {
        "format": FORMAT,
        "versions": {
            "hf_vq": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
        },
        "device": model.device.type,
        "device_name": _device_name(model.device),
        "cpu_threads": args.cpu_threads,
        "tokenizer": {
            "name": tokenizer_name(args.tokenizer, args.output_dir),
            "revision": getattr(model.config, "_commit_hash", None),
            "weights_sha256": weights_sha256(model),
        },
        "preprocessing": {name: value for name, value in processor.to_dict().items() if name != "auto_map"},
        "image_tokens": {
            "shape": list(tokens.shape[1:]),
            "dtype": token_dtype(model.config.num_codes),
            "num_codes": model.config.num_codes,
        },
        "label_names": getattr(label, "names", None),
        "dataset": {
            "name": public_name(args.dataset, follow_links=True),
            "revision": dataset_revision,
            "image_column": args.image_column,
        },
        "views": {
            "names": views.names,
            "crop_scale": views.crop_scale if views.num_crops else None,
            "seed": views.seed if views.num_crops else None,
        },
        "images_per_shard": args.images_per_shard,
        "batch_size": args.batch_size,
    }
    return json.loads(json.dumps(settings))


def _device_name(device: torch.device) -> str:
    """The kind of device; of a CPU the instructions that it has for vectors, which choose the kernels."""
    if device.type == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return name(device) if name else device.type


@contextmanager
def _computing_threads(number: int) -> Iterator[None]:
    """PyTorch computes with so many threads on the CPU meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
