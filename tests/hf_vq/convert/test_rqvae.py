"""RQ-VAE: stacks of tokens, equal to those of an independent re-implementation, and the pixels to 1e-5."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_vq.convert.checkpoints import convert_checkpoint, convert_state_dict

REFERENCES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("vqgan_references.py"))))
COMPARING = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("comparing.py"))))


@pytest.mark.parametrize("shared", [True, False])
def test_rqvae(shared: bool, tmp_path: Path) -> None:
    """With one codebook for all levels, or one for each, whose ids then follow each other; with averages beside it."""
    theirs, averaged = (COMPARING.randomize(REFERENCES.RQVAE(shared=shared)) for _ in range(2))
    averaged.encoder.conv_out.bias.data.add_(0.1)
    torch.save({"state_dict": theirs.state_dict(), "state_dict_ema": averaged.state_dict()}, tmp_path / "model.pt")

    conversion = convert_checkpoint(tmp_path, image_size=32)

    config, first = conversion.model.config, 0 if shared else 64 * torch.arange(3)
    assert conversion.layout == "rqvae"
    assert (config.quantizer_type, config.num_groups, config.share_codebook) == ("residual", 3, shared)
    assert config.num_codes == (64 if shared else 192)
    assert any("ids of a level start" in note for note in conversion.notes) != shared
    for model, reference in ((conversion.model, theirs), (convert_checkpoint(tmp_path, use_ema=True).model, averaged)):
        COMPARING.assert_same(
            model,
            reference,
            lambda theirs, images: theirs.encode(images) + first,
            lambda theirs, tokens: theirs.decode(tokens - first),
        )


def test_codebooks_of_several_sizes_are_refused() -> None:
    """The message has the sizes."""
    state = REFERENCES.RQVAE(shared=False).state_dict()
    state["quantizer.codebooks.1.weight"] = torch.zeros(33, 6)
    with pytest.raises(ValueError, match=r"codebooks of \[64, 32, 64\] codes"):
        convert_state_dict(state)
