"""Where a model was loaded from: the card and the pictures that lie there, and whether its weights are still those."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from safetensors import safe_open
from transformers import PreTrainedModel

from hf_vq.cards.files import CARD_FILE
from hf_vq.cards.keeping import pictures_in
from hf_vq.cards.merging import has_part
from hf_vq.hub.folders import OF_THE_RUN, PROCESSOR_FILE
from hf_vq.hub.repository import fetch_file
from hf_vq.hub.weights import fetch_weights
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.utils.text import is_hub_id, public_name

_WEIGHTS = "model*.safetensors"


@dataclass(frozen=True)
class Origin:
    """A folder, or a commit of a repository.

    Attributes:
        place: The folder, or the repository's id.
        commit: Of the repository; None for a folder.
        token: As everywhere on the Hub.
    """

    place: str
    commit: str | None
    token: str | bool | None = None

    @property
    def name(self) -> str:
        """What a card may call it."""
        return self.place if self.commit else str(public_name(self.place))

    def find(self, file: str) -> Path | None:
        """Where a file of it lies on this machine; None if there is none."""
        if self.commit is None:
            path = Path(self.place) / file
            return path if path.is_file() else None
        with suppress(FileNotFoundError):
            return fetch_file(self.place, file, self.commit, self.token)
        return None

    def card(self) -> str:
        """The text of its card; empty without one, or if it is a repository's and has no part of ours."""
        path = self.find(CARD_FILE)
        text = "" if path is None else path.read_text(encoding="utf-8")
        return text if self.commit is None or has_part(text) else ""

    def image_processor(self) -> VQImageProcessor | None:
        """The image processor beside the weights."""
        path = self.find(PROCESSOR_FILE)
        return None if path is None else VQImageProcessor.from_pretrained(path.parent)

    def has_weights_of(self, folder: Path) -> bool:
        """Whether all its weights are in a folder of safetensors files, bit for bit."""
        if self.commit is None:
            files = sorted(Path(self.place).glob(_WEIGHTS))
        else:
            files = fetch_weights(self.place, self.commit, self.token, [])
        saved = dict(_places(sorted(folder.glob(_WEIGHTS))))
        found = False
        for name, path in _places([file for file in files if file.match(_WEIGHTS)]):
            found = True
            if name not in saved or not _is_same(_read(path, name), _read(saved[name], name)):
                return False
        return found

    def copy_what_belongs(self, card: str, folder: Path) -> None:
        """Copies the pictures that a card shows, and what a run left beside its model, into the card's folder.

        What is there stays.
        """
        for name in (*pictures_in(card), *OF_THE_RUN):
            path = None if (folder / name).exists() else self.find(name)
            if path is not None:
                shutil.copyfile(path, folder / name)


def origin_of(model: PreTrainedModel, folder: Path, token: str | bool | None = None) -> tuple[Origin | None, bool]:
    """Where a model was loaded from.

    Args:
        model: The model.
        folder: Where it has been saved to just now.
        token: As everywhere on the Hub.

    Returns:
        The place, None if it was not loaded or if that place is gone, and whether its weights are those in `folder`.
    """
    place, commit = str(model.name_or_path or ""), getattr(model.config, "_commit_hash", None)
    # `from_hub` tells the commit, whatever folder has the same name. A run writes the whole path of its folder.
    if place and Path(place).is_dir() and (commit is None or Path(place).is_absolute()):
        origins = [Origin(place, None)]
    elif commit or is_hub_id(place):
        # `from_pretrained` does not tell the commit. It is one of those in the cache.
        commits = [commit] if commit else _cached_commits(place)
        origins = [Origin(place, known, token) for known in commits]
    else:
        return None, False
    same = next((origin for origin in origins if origin.has_weights_of(folder)), None)
    return same or next(iter(origins), None), same is not None


def _cached_commits(repo_id: str) -> list[str]:
    """The commits of a repository whose weights are in the cache, the last one used first."""
    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "snapshots"
    folders = [folder for folder in cache.glob("*") if any(folder.glob(_WEIGHTS))]
    return [folder.name for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)]


def _places(files: list[Path]) -> Iterator[tuple[str, Path]]:
    """The names of all tensors, and the files that hold them."""
    for path in files:
        with safe_open(path, "pt") as file:
            yield from ((name, path) for name in file.keys())  # noqa: SIM118


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same bits, if need be after `one` is widened; NaNs count, too."""
    if one.is_floating_point() and torch.promote_types(one.dtype, other.dtype) == other.dtype:
        one = one.to(other.dtype)
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
