"""docs/coming-from-diffusers.md is true, row by row, for the installed diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel

from hf_vq import VQConfig, VQImageProcessor, VQModel
from hf_vq.convert import convert_checkpoint, convert_state_dict, save_for_diffusers

from .pages import Page

diffusers = pytest.importorskip("diffusers")
PAGE = Page("coming-from-diffusers.md")
CONFIG: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    "block_out_channels": [16, 32],
    "layers_per_block": 2,
    "latent_channels": 6,
    "vq_embed_dim": 5,
    "num_vq_embeddings": 80,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "scaling_factor": 0.5,
}
CONVERTED: list[Any] = []


def both() -> tuple[Any, VQModel, torch.Tensor]:
    """Their model, ours converted from it, and images."""
    if not CONVERTED:
        torch.manual_seed(0)
        theirs = diffusers.VQModel(**CONFIG).eval()
        nn.init.normal_(theirs.quantize.embedding.weight)
        ours = convert_state_dict(theirs.state_dict(), source_config=dict(theirs.config)).model
        CONVERTED.extend([theirs, ours, torch.rand(2, 3, 16, 24) * 2 - 1])
    return CONVERTED[0], CONVERTED[1], CONVERTED[2]


FIELDS: dict[str, dict[str, Any]] = {
    "`in_channels=3, out_channels=3`": {"num_channels": 3},
    "`block_out_channels=(128, 256)`": {"base_channels": 16, "channel_multiplier": [1, 2]},
    "`layers_per_block=2`": {"num_res_blocks": 2},
    "`latent_channels=4`": {"latent_channels": 6},
    "`vq_embed_dim=4`": {"embed_dim": 5},
    "`num_vq_embeddings=256`": {"num_codes": 80},
    "`norm_num_groups=32`": {"norm_num_groups": 8},
    "`mid_block_add_attention=True`": {"mid_block_add_attention": False},
    "`sample_size=32`": {"image_size": 256},
    "`down_block_types` with attention": {"attn_resolutions": [128]},
}


@PAGE.row(*FIELDS)
def _fields(name: str) -> None:
    """The converted model's configuration says so, under the names of the second column."""
    config = both()[1].config
    for field, value in FIELDS[name].items():
        assert getattr(config, field) == value and field in PAGE.rows[name][0]


@PAGE.row("`scaling_factor=0.18215`")
def _scaling() -> None:
    assert not hasattr(VQConfig(), "scaling_factor") and both()[0].config.scaling_factor == 0.5


@PAGE.row('`act_fn="silu"`', '`norm_type="spatial"`')
def _refused(name: str) -> None:
    change = {"act_fn": "relu"} if "act_fn" in name else {"norm_type": "spatial"}
    theirs = both()[0]
    with pytest.raises(ValueError, match=f"`{next(iter(change))}` of the diffusers model"):
        convert_state_dict(theirs.state_dict(), source_config=dict(theirs.config) | change)


@PAGE.row("`model.encode(x).latents`")
def _latents() -> None:
    theirs, ours, x = both()
    torch.testing.assert_close(ours.encode(x).last_hidden_state, theirs.encode(x).latents, rtol=1e-4, atol=1e-4)


@PAGE.row("`model.quantize(latents)[2][2]`")
def _tokens() -> None:
    theirs, ours, x = both()
    tokens = ours.encode(x).image_tokens
    assert tokens.shape == (2, 8, 12)
    assert torch.equal(tokens.flatten(), theirs.quantize(theirs.encode(x).latents)[2][2].flatten())


@PAGE.row("`model.decode(latents).sample`", "`model(x).sample`")
def _pixels() -> None:
    theirs, ours, x = both()
    encoded = ours.encode(x)
    expected = theirs(x).sample
    for pixels in (
        ours(x).decoded_pixel_values,
        ours.decode(encoded.image_tokens).decoded_pixel_values,
        ours.decode(quantized_states=encoded.quantized_last_hidden_state).decoded_pixel_values,
        theirs.decode(encoded.last_hidden_state).sample,
    ):
        torch.testing.assert_close(pixels, expected, rtol=1e-3, atol=1e-4)


@PAGE.row("`model.quantize.get_codebook_entry(ids, shape)`")
def _entries() -> None:
    theirs, ours, x = both()
    tokens = ours.encode(x).image_tokens
    expected = theirs.quantize.get_codebook_entry(tokens.flatten(), (*tokens.shape, 5))
    assert torch.equal(ours.get_codebook_entry(tokens), expected)


@PAGE.row("`model(x).commit_loss`")
def _loss() -> None:
    theirs, ours, x = both()
    torch.testing.assert_close(1.25 * ours(x).commitment_loss, theirs(x).commit_loss, rtol=1e-4, atol=1e-6)


@PAGE.row("`x` in [-1, 1]")
def _range() -> None:
    assert both()[1].config.pixel_range == [-1.0, 1.0]
    assert VQConfig(pixel_range=[0.0, 1.0]).pixel_range == [0.0, 1.0]
    low = VQImageProcessor(image_size=8)([torch.zeros(3, 8, 8, dtype=torch.uint8)], return_tensors="pt")
    assert low["pixel_values"].unique().tolist() == [-1.0]


@PAGE.row("`VQModel.from_pretrained(path)`", "`VQModel.save_pretrained(path)`")
def _folders() -> None:
    import tempfile

    theirs, ours, x = both()
    with tempfile.TemporaryDirectory() as folder:
        save_for_diffusers(ours, Path(folder) / "diffusers")
        back = diffusers.VQModel.from_pretrained(Path(folder) / "diffusers")
        torch.testing.assert_close(back(x).sample, theirs(x).sample, rtol=1e-3, atol=1e-4)
        ours.save_pretrained(Path(folder) / "ours")
        again = AutoModel.from_pretrained(Path(folder) / "ours")
        assert torch.equal(again(x).decoded_pixel_values, ours(x).decoded_pixel_values)


def test_every_row_has_a_case() -> None:
    """Or says why not."""
    PAGE.assert_complete()
    assert len(PAGE.rows) > 20


@pytest.mark.parametrize("name", list(PAGE.cases))
@torch.no_grad()
def test_row(name: str) -> None:
    """What a row says holds for the installed library and for ours."""
    PAGE.cases[name]()


@pytest.mark.parametrize("block", PAGE.code())
def test_code(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `print(...)  # text` prints that text."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    PAGE.assert_prints(block)


def test_a_converted_model_has_plain_vector_quantization(tmp_path: Path) -> None:
    """As the page ends: without initialization, replacement and inner steps."""
    theirs = both()[0]
    theirs.save_pretrained(tmp_path)
    config = convert_checkpoint(tmp_path).model.config
    assert (config.replace_freq, config.alternating_steps, config.sync_nu, config.kmeans_init) == (0, 0, 0.0, False)
