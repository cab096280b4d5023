"""A layout of one's own is one row."""

from __future__ import annotations

import pytest
import torch

from hf_vq import VQConfig, VQModel
from hf_vq.convert.checkpoints import convert_state_dict
from hf_vq.convert.layout import Layout
from hf_vq.convert.layouts import LAYOUTS


def test_a_new_layout_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is found out by its names, and converts with the fields that it adds."""
    row = Layout(
        "mine",
        "net_encoder.down.0.block.0.conv1.weight",
        lambda keys: any(key.startswith("net_encoder.") for key in keys),
        renames=((r"^(encoder|decoder)\.", r"net_\1."),),
        counts_down=False,
        fields=lambda source: {"beta": 0.5},
    )
    monkeypatch.setitem(LAYOUTS, row.name, row)
    config = VQConfig(base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=8, image_size=16)
    model = VQModel(config).eval()
    theirs = {row.key(key, 2): value.detach() for key, value in model.named_parameters()}

    conversion = convert_state_dict(theirs, image_size=16)

    assert conversion.layout == "mine" and conversion.model.config.beta == 0.5
    pixel_values = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(conversion.model.encode(pixel_values).image_tokens, model.encode(pixel_values).image_tokens)
