"""The client of the Hub, and the error that stands for all of its."""

from __future__ import annotations

from huggingface_hub import HfApi

from hf_vq.modeling.version_vq import __version__


class HubError(OSError):
    """The Hub, or what it holds under a name, does not allow what was asked for; the message says what to do."""


def hub_api(token: str | bool | None) -> HfApi:
    """A client that says which package asks."""
    return HfApi(token=token, library_name="hf_vq", library_version=__version__)
