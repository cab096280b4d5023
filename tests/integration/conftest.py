"""A model on the Hub, and a network that can be turned off."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import huggingface_hub
import pytest

import hf_vq
from hf_vq import VQImageProcessor, VQModel

if TYPE_CHECKING:
    from ..hub_server import HubServer

from .hub_models import NAME, tiny


@pytest.fixture
def pushed(hub: HubServer) -> VQModel:
    """The model that the repository has."""
    model = tiny()
    hf_vq.push_to_hub(model, NAME, image_processor=VQImageProcessor(image_size=16, resample=0))
    return model


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Turns the network off, as HF_HUB_OFFLINE=1 does."""
    return lambda: monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
