"""Open-MAGVIT2: all tokens are those of an independent re-implementation, the pixels to 1e-5."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_vq import VQConfig, VQModel
from hf_vq.convert.checkpoints import convert_checkpoint, convert_state_dict, save_for_diffusers

FOLDER = Path(__file__).parent
REFERENCES = SimpleNamespace(**runpy.run_path(str(FOLDER / "magvit_reference.py")))
COMPARING = SimpleNamespace(**runpy.run_path(str(FOLDER / "comparing.py")))
SMALL = VQConfig(
    architecture="magvit2",
    image_size=16,
    base_channels=32,
    channel_multiplier=[1, 1],
    num_res_blocks=1,
    latent_channels=4,
    embed_dim=4,
    quantizer_type="lfq",
    num_codes=16,
)


def test_open_magvit2(tmp_path: Path) -> None:
    """Styles of the codes, depth-to-space, padding on all sides, and averaged weights on request."""
    theirs, averaged = (COMPARING.randomize(REFERENCES.OpenMagvit2()) for _ in range(2))
    with torch.no_grad():
        averaged.encoder.conv_out.bias.add_(0.1)
    state = theirs.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(1)}
    state |= {f"model_ema.{key.replace('.', '')}": value for key, value in averaged.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "imagenet_256_L.ckpt")

    conversion = convert_checkpoint(tmp_path, image_size=32)

    config = conversion.model.config
    assert conversion.layout == "open_magvit2" and config.architecture == "magvit2"
    assert (config.quantizer_type, config.num_codes, config.pixel_range) == ("lfq", 64, [-1.0, 1.0])
    COMPARING.assert_same(conversion.model, theirs)
    ema = convert_checkpoint(tmp_path, image_size=32, use_ema=True)
    COMPARING.assert_same(ema.model, averaged)


@pytest.mark.parametrize("name", ["encoder.mid_block.2.conv1.weight", "decoder.adaptive.1.beta.bias"])
def test_missing_weights_are_listed(name: str) -> None:
    """By the names of the file."""
    state = REFERENCES.OpenMagvit2().state_dict()
    del state[name]
    with pytest.raises(ValueError, match=f"missing: .*'{name}'"):
        convert_state_dict(state)


def test_a_video_network_is_refused() -> None:
    """Its first convolution has a third axis."""
    state = REFERENCES.OpenMagvit2().state_dict()
    with pytest.raises(ValueError, match="reads videos"):
        convert_state_dict(state | {"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3, 3)})


def test_the_network_trains_and_loads(tmp_path: Path) -> None:
    """A new one gives gradients to all weights, and comes back from a folder; diffusers cannot hold it."""
    torch.manual_seed(0)
    model = VQModel(SMALL).train()
    pixels = COMPARING.pixels(16)
    model(pixels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    model.eval().save_pretrained(tmp_path)
    again = VQModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(pixels).decoded_pixel_values, again(pixels).decoded_pixel_values)
    with pytest.raises(ValueError, match="its architecture is 'magvit2'"):
        save_for_diffusers(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_channels": 48}, "`norm_num_groups=32` must divide every width"),
        ({"patch_size": 2}, 'need `architecture="vqgan"`'),
        ({"num_downsamples": 1}, 'need `architecture="vqgan"`'),
    ],
)
def test_fields_that_make_no_sense(fields: dict, words: str) -> None:
    """Each has its message."""
    with pytest.raises((ValueError, StrictDataclassError), match=words):
        VQConfig(architecture="magvit2", **fields)
