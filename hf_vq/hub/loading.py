"""A model of any kind, from a folder or from the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_vq.hub.folders import load_folder, require_model
from hf_vq.hub.models import from_hub
from hf_vq.hub.repository import HubError, require_hub_id
from hf_vq.kinds import kind_of
from hf_vq.modeling.image_processing_vq import VQImageProcessor


def load_model(
    name: str | Path, revision: str | None = None, *, noun: str | None = None, allow_unverified: bool = False
) -> tuple[Any, VQImageProcessor]:
    """Loads a model in eval mode and its image processor, from a folder or, pinned and verified, from the Hub.

    Args:
        name: Folder, or id of a repository on the Hub.
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
    folder = Path(name).expanduser()
    if not folder.is_dir():
        require_hub_id(name, f"no {what}")
        try:
            return from_hub(str(name), revision=revision, allow_unverified=allow_unverified)
        except HubError as error:
            if not folder.parent.is_dir() or folder.parent == Path():
                raise
            raise HubError(f"{error} Nor is there a folder '{name}', though there is '{folder.parent}'.") from error
    if revision is not None:
        raise ValueError(f"'{name}' is a folder, which has no revision {revision!r}: leave it out")
    require_model(folder, what)
    return load_folder(folder, name)
