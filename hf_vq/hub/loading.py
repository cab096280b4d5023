"""A model of any kind, from a folder or from the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_vq.hub.folders import load_folder, require_model
from hf_vq.hub.models import from_hub
from hf_vq.hub.repository import require_hub_id
from hf_vq.hub.samples import is_sample, local_model
from hf_vq.kinds import kind_of
from hf_vq.modeling.image_processing_vq import VQImageProcessor


def load_model(
    name: str | Path, revision: str | None = None, *, noun: str | None = None, allow_unverified: bool = False
) -> tuple[Any, VQImageProcessor]:
    """Loads a model in eval mode and its image processor, from a folder or, pinned and verified, from the Hub.

    Args:
        name: Folder, name of a sample model such as `"emoji-tokenizer"`, or id of a repository on the Hub; the first
            of these that there is. `"hf://user/name"` asks the Hub whatever is here.
        revision: Branch, tag or commit of the repository.
        noun: The kind of model that it must be, as `"tokenizer"`; None for any.
        allow_unverified: Whether cached files may be used that cannot be verified; see `from_hub`.

    Raises:
        FileNotFoundError: There is no such folder, or no model in it.
        ValueError: It is of another kind or of none of ours, its weights are not whole, a revision came with a folder,
            or the image processor has another range of pixels than the model.
        HubError: There is no such repository or revision, access is denied, or it holds something else.
    """
    model, processor = _load(name, revision, noun or "model", allow_unverified)
    if noun is not None and kind_of(model).noun != noun:
        hint = " Of a generator, pass the tokenizer it was made for." if noun == "tokenizer" else ""
        raise ValueError(f"'{name}' is not a {noun} but a {type(model).__name__}.{hint}")
    return model, processor


def load_tokenizer(
    name: str | Path, revision: str | None = None, *, allow_unverified: bool = False
) -> tuple[Any, VQImageProcessor]:
    """Loads a tokenizer; see `load_model`."""
    return load_model(name, revision, noun="tokenizer", allow_unverified=allow_unverified)


def _load(name: str | Path, revision: str | None, what: str, allow_unverified: bool) -> tuple[Any, VQImageProcessor]:
    folder = local_model(name)
    if folder is None:
        repo_id = require_hub_id(name, f"no {what}")
        return from_hub(repo_id, revision=revision, allow_unverified=allow_unverified)
    if revision is not None:
        place = "comes with the package and" if is_sample(name) else "is a folder, which"
        raise ValueError(f"'{name}' {place} has no revision {revision!r}: leave it out")
    require_model(folder, what)
    return load_folder(folder, name)
