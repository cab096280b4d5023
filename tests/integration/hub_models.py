"""Tiny models on the Hub, and their files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from hf_vq import VQConfig, VQModel

if TYPE_CHECKING:
    from ..hub_server import HubServer

NAME = "alice/vq"


def tiny(seed: int = 0) -> VQModel:
    """A model of some thousand parameters, another for each seed."""
    torch.manual_seed(seed)
    config = VQConfig(
        architecture="sqvae", image_size=16, base_channels=8, num_res_blocks=1, embed_dim=4, num_codes=16
    )
    return VQModel(config).eval()


def assert_same(first: VQModel, second: VQModel) -> None:
    """The weights of two models are equal."""
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name


def edit_config(hub: HubServer, **settings: Any) -> None:
    """Commits another config.json; None takes a key out."""
    config = json.loads(hub.store.read(NAME, "config.json")) | settings
    kept = {key: value for key, value in config.items() if value is not None}
    hub.store.write(NAME, "config.json", json.dumps(kept).encode())
