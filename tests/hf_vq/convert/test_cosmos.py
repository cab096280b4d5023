"""NVIDIA's Cosmos Tokenizer: all tokens are those of an independent re-implementation, the pixels to 1e-5."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_vq.convert.checkpoints import convert_checkpoint, convert_state_dict
from hf_vq.modeling.wavelets_vq import from_wavelets, to_wavelets

FOLDER = Path(__file__).parent
REFERENCES = SimpleNamespace(**runpy.run_path(str(FOLDER / "cosmos_reference.py")))
COMPARING = SimpleNamespace(**runpy.run_path(str(FOLDER / "comparing.py")))


@pytest.mark.parametrize(
    "fields",
    [{"steps": 2}, {"steps": 1}, {"steps": 1, "patch_size": 2, "multipliers": (1, 1, 2), "blocks": 2}],
    ids=["DI16x16", "DI8x8", "other"],
)
def test_cosmos(fields: dict[str, Any]) -> None:
    """Wavelets, fewer steps than resolutions, and levels in place of codes."""
    theirs = COMPARING.randomize(REFERENCES.Cosmos(**fields))

    conversion = convert_state_dict(theirs.state_dict(), image_size=64)

    config = conversion.model.config
    assert conversion.layout == "cosmos" and config.pixel_range == [-1.0, 1.0]
    assert (config.quantizer_type, config.num_codes) == ("fsq", 64000)
    assert config.downsample_factor == theirs.patch_size * 2 ** fields["steps"]
    assert conversion.assumptions == ["the channels have [8, 8, 8, 5, 5, 5] levels (FSQ), as in all published models"]
    COMPARING.assert_same(conversion.model, theirs)


def test_its_program_is_read_but_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`autoencoder.jit` beside the two halves, in half precision, tells the levels, too."""
    theirs = COMPARING.randomize(REFERENCES.Cosmos(levels=(7, 5, 4), steps=1)).to(torch.bfloat16)
    with torch.no_grad():
        program: Any = torch.jit.trace(theirs, torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16))
    for name in ("autoencoder.jit", "encoder.jit", "decoder.jit"):
        torch.jit.save(program, tmp_path / name)
    monkeypatch.delattr(torch.jit, "load")

    conversion = convert_checkpoint(tmp_path, image_size=64)

    assert conversion.model.config.levels == [7, 5, 4] and conversion.assumptions == []
    assert "which was not run" in conversion.notes[0]
    COMPARING.assert_same(conversion.model, theirs)


def test_its_continuous_models_are_refused() -> None:
    """They have the same names, and another number of latent channels."""
    state = REFERENCES.Cosmos(levels=(3,) * 16).state_dict()
    with pytest.raises(ValueError, match="Cosmos Tokenizer with 16 latent channels.*whose name has DI"):
        convert_state_dict(state)


def test_wavelets_are_an_orthogonal_change_of_pixels() -> None:
    """The first channels are means of patches, and the way back gives the same pixels."""
    pixels = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    for patch_size in (1, 2, 4, 8):
        wavelets = to_wavelets(pixels, patch_size)
        assert wavelets.shape == (2, 3 * patch_size**2, 16 // patch_size, 24 // patch_size)
        torch.testing.assert_close(wavelets[:, :3], torch.nn.functional.avg_pool2d(pixels, patch_size))
        torch.testing.assert_close(from_wavelets(wavelets, patch_size), pixels)
