"""Reads files of weights, whatever they are wrapped in, without running anything that they hold."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_vq.convert.architecture import averaged_key
from hf_vq.convert.inert import is_program, load_inert, load_program
from hf_vq.utils.text import shorten

_PICKLES = (".ckpt", ".pth", ".pt", ".bin", ".jit")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "generator")
_MOST_CLAIMED = 4  # times the size of a file: weights that are tied share their place in it


_FIRST = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "*.safetensors.index.json",
    "*.bin.index.json",
    "autoencoder.jit",
)
_VARIANT = re.compile(r"\.(?:fp16|bf16|non_ema)$")  # of the file beside it whose name lacks this


def weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"There is no file or folder {str(path)!r}. Check the path.")
    for pattern in _FIRST:
        for file in path.glob(pattern):
            return file
    files = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", *_PICKLES))
    stems = {file.stem for file in files}
    files = [
        file for file in files if file.stem == _VARIANT.sub("", file.stem) or _VARIANT.sub("", file.stem) not in stems
    ]
    if len(files) != 1:
        names = shorten([file.name for file in files], quoted=True)
        found = f"{len(files)} of them, {names}" if files else "none"
        folders = sorted(each.name for each in path.iterdir() if each.is_dir())
        inside = shorten(folders, quoted=True)
        hint = f" Its folders are {inside}. One of them may hold the tokenizer." if folders else ""
        raise FileNotFoundError(f"{str(path)!r} must hold one file of weights, but found {found}.{hint}")
    return files[0]


def read_weights(file: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Reads a file of weights, or the index of several.

    Args:
        file: What `weights_file` found.

    Returns:
        Tensors by name, and one sentence for each kind of thing that was left out.

    Raises:
        ValueError: If it cannot be read, or claims more than it holds.
    """
    if file.suffix not in (".safetensors", ".json", *_PICKLES):
        kinds = shorten((".safetensors", *_PICKLES), quoted=True)
        raise ValueError(f"A checkpoint must be a file of {kinds}, got {file.name!r}.")
    try:
        if file.suffix == ".json":
            shards = [read_weights(shard) for shard in files_of(file)]
            notes = list(dict.fromkeys(note for _, notes in shards for note in notes))
            return {key: value for weights, _ in shards for key, value in weights.items()}, notes
        if file.suffix == ".safetensors":
            return load_file(file), []
        content, notes = _load_pickle(file)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"{file.name!r} cannot be read: {error}. It may be incomplete; try to download it again."
        ) from error
    weights = _unwrap(content, file, notes)
    _refuse_claims(weights, file)
    return weights, notes


def _load_pickle(file: Path) -> tuple[Any, list[str]]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            _refuse_compressed(archive, file)
            if is_program(archive):
                return load_program(archive), ["took the weights of a program (TorchScript), which was not run"]
    try:
        return torch.load(file, map_location="cpu", weights_only=True), []
    except pickle.UnpicklingError:
        content, left_out = load_inert(file)
    return content, [f"left out objects that are no tensors, without making them: {shorten(left_out, 4, quoted=True)}"]


def _unwrap(content: Any, file: Path, notes: list[str]) -> dict[str, torch.Tensor]:
    """Returns the tensors inside dictionaries of dictionaries, with the averages beside them as `model_ema.*`."""
    averaged: dict[str, torch.Tensor] = {}
    opened: set[int] = set()
    while isinstance(content, Mapping):
        if id(content) in opened:
            raise ValueError(f"{file.name!r} has a dictionary that contains itself. It holds no weights.")
        opened.add(id(content))
        inside = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        ema = content.get("ema", content.get("state_dict_ema"))
        if isinstance(ema, Mapping) and inside is None and not any(map(torch.is_tensor, content.values())):
            notes.append("took the averaged weights, the only ones in the file")
            inside = ema
        elif isinstance(ema, Mapping):  # in some files it is the rate of decay
            averaged |= {averaged_key(name): value for name, value in ema.items() if isinstance(name, str)}
        if inside is None:
            break
        content = inside
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{file.name!r} holds a {type(content).__name__}, but a checkpoint must be a dictionary of tensors."
        )
    return {
        key: value
        for key, value in (dict(content) | averaged).items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }


def files_of(file: Path) -> list[Path]:
    """Returns the files with weights that `file` stands for: those of an index, or itself."""
    if file.suffix != ".json":
        return [file]
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{file.name!r} has no 'weight_map' from names of weights to names of files")
    return [file.with_name(name) for name in sorted(set(weight_map.values()))]


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, not a dictionary")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file.name!r} cannot be read: {error}.") from error
    return content


def _refuse_compressed(archive: zipfile.ZipFile, file: Path) -> None:
    """Refuses archives whose members are far larger than themselves; `torch.save` compresses nothing."""
    size = sum(member.file_size for member in archive.infolist())
    if size > _MOST_CLAIMED * file.stat().st_size:
        raise ValueError(f"its {file.stat().st_size:,} bytes claim to hold {size:,}")


def _refuse_claims(weights: Mapping[str, torch.Tensor], file: Path) -> None:
    """Refuses tensors that have more values than the file has: a stride of 0 repeats one of them at will."""
    claimed, most = 0, _MOST_CLAIMED * file.stat().st_size
    for key, value in weights.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            raise ValueError(f"{key!r} in {file.name!r} is not an ordinary tensor of numbers. Save it as one.")
        size = value.numel() * value.element_size()
        claimed += size
        if size > value.untyped_storage().nbytes() or claimed > most:
            raise ValueError(
                f"{key!r} in {file.name!r} has the shape {tuple(value.shape)}, which is more than the file of "
                f"{file.stat().st_size:,} bytes holds. If it repeats values on purpose, save `tensor.contiguous()`."
            )
