"""VQGANs with a Gumbel-softmax quantizer: the most likely tokens, and the pixels of their vectors."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_vq.convert.checkpoints import convert_state_dict

REFERENCES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("vqgan_references.py"))))
COMPARING = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("comparing.py"))))


def test_gumbel() -> None:
    """A token is the largest logit, with its bias, and has a vector of its own."""
    theirs = COMPARING.randomize(REFERENCES.Gumbel())
    with torch.no_grad():  # vectors around zero have many largest logits
        vectors = theirs.quant_conv(theirs.encoder(COMPARING.pixels()))
        theirs.quant_conv.bias.sub_(vectors.mean((0, 2, 3)))
        theirs.quantize.proj.weight.div_(vectors.std())

    conversion = convert_state_dict(theirs.state_dict(), image_size=32)

    assert conversion.layout == "gumbel" and "the original draws tokens" in conversion.notes[0]
    assert (conversion.model.config.quantizer_type, conversion.model.config.embed_dim) == ("ibq", 13)
    COMPARING.assert_same(conversion.model, theirs)


@pytest.mark.parametrize("name", ["quantize.proj.bias", "quant_conv.bias"])
def test_what_is_missing_is_told(name: str) -> None:
    """Nothing is made up."""
    state = REFERENCES.Gumbel().state_dict()
    del state[name]
    with pytest.raises(ValueError, match="missing"):
        convert_state_dict(state)
