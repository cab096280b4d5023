"""What does not fit is told: tensors, quantizers and layouts."""

from __future__ import annotations

import pytest
import torch

from hf_vq import VQConfig, VQModel
from hf_vq.convert.checkpoints import convert_state_dict

from .test_checkpoints import REFERENCES, SMALL, assert_same, randomize


def test_missing_unknown_and_misshapen_tensors_are_listed() -> None:
    """One error lists all three kinds by their names in the file."""
    state = REFERENCES.LlamaGen().state_dict()
    del state["decoder.conv_blocks.0.res.1.conv2.bias"]
    state["encoder.surprise"] = torch.zeros(1)
    state["decoder.mid.0.norm1.weight"] = torch.zeros(3)

    with pytest.raises(ValueError) as caught:
        convert_state_dict(state)

    message = str(caught.value)
    assert "layout 'llamagen'" in message
    assert "missing: 'decoder.conv_blocks.0.res.1.conv2.bias'" in message
    assert "not known: 'encoder.surprise'" in message
    assert "'decoder.mid.0.norm1.weight' has the shape (3,), expected (64,)" in message


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("quantize.used", "remap"),
        ("other.encoder.conv_in.weight", "Found 2 tokenizers, at '', 'other.'.*`--prefix`"),
    ],
)
def test_other_quantizers_and_several_tokenizers_are_refused(extra: str, words: str) -> None:
    """Each has a message with the reason."""
    with pytest.raises(ValueError, match=words):
        convert_state_dict(REFERENCES.Taming().state_dict() | {extra: torch.zeros(1)})


def test_one_of_several_tokenizers_is_chosen() -> None:
    """By its prefix, with or without the dot; one that is not there is told beside those that are."""
    first, second = (randomize(REFERENCES.Taming(n_embed=number)) for number in (40, 50))
    state = {f"first.{key}": value for key, value in first.state_dict().items()}
    state |= {f"second.vq.{key}": value for key, value in second.state_dict().items()}

    for prefix in ("second.vq", "second.vq."):
        conversion = convert_state_dict(state, prefix=prefix)
        assert_same(conversion.model, second)
        assert f"took the tokenizer at 'second.vq.', left out {len(first.state_dict())}" in conversion.notes[0]
    with pytest.raises(ValueError, match="No name begins with the prefix 'third.'.*at 'first.', 'second.vq.'"):
        convert_state_dict(state, prefix="third")


def test_unknown_layouts_are_refused() -> None:
    """Other files, our own, single layers, and a layout that does not exist have their messages."""
    for state, words in (
        ({"layer.weight": torch.zeros(1)}, "No known layout.*got 'layer.weight'"),
        (VQModel(VQConfig(**SMALL)).state_dict(), "weights of hf_vq itself"),
        ({"codebook.weight": torch.zeros(1)}, "load_vqtorch_state_dict"),
        ({"vq._codebook.embed": torch.zeros(1)}, "`convert_vector_quantize_pytorch` reads them"),
    ):
        with pytest.raises(ValueError, match=words):
            convert_state_dict(state)
    with pytest.raises(
        ValueError, match="`layout` must be one of 'taming', 'ibq', 'janus', 'llamagen', 'diffusers', .*'x'"
    ):
        convert_state_dict({}, layout="x")


def test_the_layout_can_be_given() -> None:
    """With one resolution, taming and Janus have the same names but decode codes differently."""
    state = REFERENCES.Taming(ch_mult=(1,), attention=(0,)).state_dict()

    assert convert_state_dict(state).model.config.embed_dim == 6
    assert convert_state_dict(state, layout="janus").model.config.embed_dim == 12
