"""What the manifest of a token data set may say, and whether the shards are what it says."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_vq.utils.hashes import file_sha256
from hf_vq.utils.text import first_line

logger = logging.getLogger(__name__)

Manifest = dict[str, Any]

_DTYPES = {"uint8": 2**8, "uint16": 2**16, "uint32": 2**32}
# What was found in files that this process has read: hash and largest id, by absolute path, size and time of change.
_seen: dict[tuple[str, int, int], tuple[str, int]] = {}


class DamagedShardError(ValueError):
    """A file of a token data set is not what was written."""


def problem_of_manifest(manifest: Any) -> str | None:
    """What is wrong with a manifest; None if it can be used.

    Args:
        manifest: What was read of the JSON file.
    """
    if not isinstance(manifest, dict):
        return "it is no table of settings"
    problems = [
        _problem(manifest, "format", int, least=1),
        _problem(manifest, "image_tokens", dict),
        _problem(manifest, "tokenizer", dict),
        _problem(manifest, "views", dict),
        _problem(manifest, "splits", dict),
    ]
    if any(problems):
        return next(filter(None, problems))
    tokens, tokenizer, names = manifest["image_tokens"], manifest["tokenizer"], manifest.get("label_names")
    shape, views = tokens.get("shape"), manifest["views"].get("names")
    if not isinstance(shape, list) or len(shape) not in (2, 3) or not all(_is_count(size, 1) for size in shape):
        return f"image_tokens.shape must be [height, width] or [height, width, groups], not {shape!r}"
    if not _is_count(tokens.get("num_codes"), 1):
        return f"image_tokens.num_codes must be a positive number, not {tokens.get('num_codes')!r}"
    if tokens["num_codes"] > _DTYPES.get(str(tokens.get("dtype")), 0):
        return f"image_tokens.dtype {tokens.get('dtype')!r} does not hold the ids of {tokens['num_codes']} codes"
    if not isinstance(tokenizer.get("name"), str | None) or not isinstance(tokenizer.get("revision"), str | None):
        return "tokenizer.name and tokenizer.revision must be names"
    if not _is_sha256(tokenizer.get("weights_sha256")):
        return "tokenizer.weights_sha256 must be a hash"
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return "label_names must be names"
    if not (isinstance(views, list) and views and all(isinstance(name, str) for name in views)):
        return "views.names must be names"
    files: set[str] = set()
    for split, record in manifest["splits"].items():
        problem = _problem_of_split(split, record, files)
        if problem is not None:
            return f"split {split!r}: {problem}"
    return None


def _problem_of_split(split: str, record: Any, files: set[str]) -> str | None:
    """What is wrong with the record of a split. The names of its files are added to `files`."""
    if not re.fullmatch(r"\w+", split):
        return "its name must be a word"
    if not isinstance(record, dict):
        return "it is no table"
    if record.get("num_images") is not None and not _is_count(record["num_images"]):
        return f"num_images must be a number, not {record['num_images']!r}"
    if "shards" not in record:
        return None
    shards = record["shards"]
    if not isinstance(shards, list) or not shards or not all(isinstance(shard, dict) for shard in shards):
        return "shards must be a list of files"
    for shard in shards:
        name = shard.get("file")
        # A plain name in the folder: no path, nothing hidden, nothing above.
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*\.parquet", name):
            return f"{name!r} is not the plain name of a parquet file"
        if name in files:
            return f"{name} stands there twice"
        files.add(name)
        if not _is_count(shard.get("num_rows")):
            return f"num_rows of {name} must be a number, not {shard.get('num_rows')!r}"
        if "sha256" in shard and not _is_sha256(shard["sha256"]):
            return f"sha256 of {name} must be a hash"
    if len({"sha256" in shard for shard in shards}) > 1:
        return "some of its files have no hash"
    if record.get("num_rows") != sum(shard["num_rows"] for shard in shards):
        return f"num_rows is {record.get('num_rows')!r}, its files have {sum(shard['num_rows'] for shard in shards)}"
    if not isinstance(record.get("skipped", {}), dict):
        return "skipped must be a table"
    return None


def _problem(manifest: Manifest, name: str, kind: Any, least: int | None = None) -> str | None:
    value = manifest.get(name)
    if isinstance(value, bool) or not isinstance(value, kind) or (least is not None and value < least):
        return f"{name} is missing or wrong: {value!r:.100}"
    return None


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def require_inside(folder: Path, names: Sequence[str]) -> None:
    """Refuses files that are links to outside of a data set's folder.

    A snapshot in the Hub's cache consists of links to the cache's own `blobs`, which are fine.

    Raises:
        ValueError: A file lies elsewhere.
    """
    places = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        places.append(folder.resolve().parents[1] / "blobs")
    for name in names:
        if (folder / name).resolve().parent not in places:
            raise ValueError(f"'{folder / name}' is a link to outside of the data set: copy the file into the folder")


def verify_shard(path: Path, shard: dict[str, Any], tokens: dict[str, Any]) -> None:
    """Compares a shard with what the manifest says about it: hash, rows, type and number of tokens, largest id.

    A file is read once. What was found in it is remembered by its absolute path, size and time of change.

    Args:
        path: The file.
        shard: Its record: `num_rows`, and `sha256` if this version or a later one wrote it.
        tokens: The manifest's `image_tokens`.

    Raises:
        DamagedShardError: The file is something else.
    """
    schema, num_rows = _read(path, lambda: (pq.read_schema(path), pq.read_metadata(path).num_rows))
    if "image_tokens" not in schema.names:
        raise DamagedShardError(f"'{path}' is damaged: it has no column image_tokens")
    kind, expected = schema.field("image_tokens").type, (tokens["dtype"], math.prod(tokens["shape"]))
    if not pa.types.is_fixed_size_list(kind) or (str(kind.value_type), kind.list_size) != expected:
        raise DamagedShardError(f"'{path}' holds {kind}, the manifest says {expected[1]} tokens of {expected[0]}")
    if num_rows != shard["num_rows"]:
        raise DamagedShardError(f"'{path}' has {num_rows} rows, the manifest says {shard['num_rows']}")
    status = path.stat()
    place = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    if place not in _seen:
        _seen[place] = _read(path, lambda: (file_sha256(path), _largest_id(path)))
    digest, largest = _seen[place]
    if shard.get("sha256", digest) != digest:
        raise DamagedShardError(f"'{path}' is damaged: it does not hold what was written")
    if largest >= tokens["num_codes"]:
        raise DamagedShardError(f"'{path}' holds the id {largest}, there are {tokens['num_codes']} codes")


def _largest_id(path: Path) -> int:
    """The largest token of a file; the checksums of its pages are compared on the way."""
    largest = -1
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(batch_size=4096):
            column = batch.column(batch.schema.get_field_index("image_tokens"))
            if len(batch):
                largest = max(largest, pc.max(column.flatten()).as_py() or 0)
    return largest


def _read(path: Path, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (OSError, ValueError, pa.ArrowException) as reason:  # ArrowInvalid is a ValueError, ArrowIOError an OSError
        raise DamagedShardError(f"'{path}' is damaged: it cannot be read ({first_line(reason)})") from reason


def warn_if_unverified(record: dict[str, Any], split: str, where: str) -> None:
    """Says so where the files of a split have no hashes."""
    if "shards" in record and "sha256" not in record["shards"][0]:
        logger.warning(
            "%s: the files of the split '%s' have no hashes, as version 0.1.0 wrote them: not verified.", where, split
        )
