"""MaskGIT's VQGAN, VQGAN+ and MaskBit: all tokens are those of independent re-implementations, the pixels to 1e-5."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_vq.convert.checkpoints import convert_checkpoint, convert_state_dict

REFERENCES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("maskgit_references.py"))))
COMPARING = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("comparing.py"))))


def test_maskgit(tmp_path: Path) -> None:
    """Pooling, late shortcuts and the missing biases and projections become weights; pixels are in [0, 1]."""
    theirs = COMPARING.randomize(REFERENCES.MaskGit())
    torch.save(theirs.state_dict(), tmp_path / "maskgit-vqgan-imagenet-f16-256.bin")

    conversion = convert_checkpoint(tmp_path)

    config = conversion.model.config
    assert conversion.layout == "maskgit" and config.pixel_range == [0.0, 1.0]
    assert (config.num_codes, config.embed_dim, config.channel_multiplier) == (64, 8, [1, 1, 2])
    assert any("added 3 residual blocks" in note for note in conversion.notes)
    COMPARING.assert_same(conversion.model, theirs)


def test_one_block_in_a_middle_is_refused_by_what_is_missing() -> None:
    """A `VQModel` has two there. The message has the names of the file."""
    with pytest.raises(ValueError, match=r"missing: .*'decoder.mid.1.conv1.weight'"):
        convert_state_dict(REFERENCES.MaskGit(blocks=1).state_dict())


@pytest.mark.parametrize(
    "name", ["encoder.down.1.block.0.conv1.weight", "encoder.mid.1.norm1.bias", "decoder.up.0.block.1.conv2.weight"]
)
def test_missing_weights_of_maskgit_are_listed(name: str) -> None:
    """Nothing but what the project leaves out is filled in."""
    state = REFERENCES.MaskGit().state_dict()
    del state[name]
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        convert_state_dict(state)


@pytest.mark.parametrize("bits", [6, 9])
def test_maskbit(bits: int, tmp_path: Path) -> None:
    """Tokens are the numbers whose bits are the signs."""
    theirs = COMPARING.randomize(REFERENCES.MaskBit(z_channels=bits, num_codes=2**bits, decoder_blocks=2))
    torch.save(theirs.state_dict(), tmp_path / "maskbit_tokenizer.bin")

    conversion = convert_checkpoint(tmp_path)

    config = conversion.model.config
    assert conversion.layout == "maskbit" and config.pixel_range == [0.0, 1.0]
    assert (config.quantizer_type, config.num_codes, config.embed_dim) == ("lfq", 2**bits, bits)
    assert any(f"the signs of {bits} channels (lookup-free)" in note for note in conversion.notes)
    COMPARING.assert_same(conversion.model, theirs)


@pytest.mark.parametrize("kind", ["VQGANPlus", "LegacyVQGANPlus"])
def test_vqgan_plus(kind: str) -> None:
    """Also its older files, which pool and number the levels of the decoder the other way round."""
    theirs = COMPARING.randomize(getattr(REFERENCES, kind)())

    conversion = convert_state_dict(theirs.state_dict())

    assert conversion.layout == "maskbit" and "use_l2_normalisation" in " ".join(conversion.assumptions)
    COMPARING.assert_same(conversion.model, theirs)
