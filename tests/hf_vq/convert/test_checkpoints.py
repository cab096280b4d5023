"""Weights of other projects: the same tokens and the same pixels as the original, or a clear refusal."""

from __future__ import annotations

import copy
import json
import logging
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from hf_vq import VQConfig, VQModel
from hf_vq.convert.checkpoints import convert_checkpoint, convert_state_dict, save_for_diffusers

REFERENCES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("vqgan_references.py"))))
COMPARING = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("comparing.py"))))
randomize, pixels, assert_same = COMPARING.randomize, COMPARING.pixels, COMPARING.assert_same
AMUSED = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [16, 32, 48],
    "layers_per_block": 2,
    "latent_channels": 10,
    "num_vq_embeddings": 96,
    "norm_num_groups": 8,
    "vq_embed_dim": 5,
    "mid_block_add_attention": False,
    "lookup_from_codebook": True,
}
VQ_DIFFUSION = {
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "latent_channels": 6,
    "num_vq_embeddings": 80,
}


def assert_same_as_diffusers(model: VQModel, theirs: Any) -> None:
    """Checks that encode, quantize and decode of diffusers' model agree with ours."""
    assert_same(
        model,
        theirs,
        lambda theirs, images: theirs.quantize(theirs.encode(images).latents)[2][2],
        lambda theirs, tokens: theirs.decode(theirs.encode(pixels().double()).latents).sample,
    )


# --- diffusers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [AMUSED, VQ_DIFFUSION], ids=["amused", "vq-diffusion"])
def test_diffusers(config: dict[str, Any], tmp_path: Path) -> None:
    """A folder as diffusers saves it gives the same tokens and pixels."""
    theirs = randomize(diffusers.VQModel(**config))
    theirs.save_pretrained(tmp_path)

    conversion = convert_checkpoint(tmp_path, image_size=32)

    assert conversion.layout == "diffusers" and not conversion.notes
    assert_same_as_diffusers(conversion.model, theirs)


def test_old_diffusers_names() -> None:
    """The names that diffusers had for attention blocks before 0.17 give the same model."""
    theirs = randomize(diffusers.VQModel(**VQ_DIFFUSION))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = theirs.state_dict()
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    assert "encoder.mid_block.attentions.0.query.weight" in state

    assert_same_as_diffusers(convert_state_dict(state).model, theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "relu"}, "`act_fn` of the diffusers model is 'relu'"),
        ({"norm_type": "spatial"}, "`norm_type` of the diffusers model is 'spatial'"),
        ({"_class_name": "AutoencoderKL"}, "`_class_name` of the diffusers model is 'AutoencoderKL'"),
        ({"down_block_types": ["DownBlock2D"]}, "'DownBlock2D'"),
    ],
)
def test_diffusers_models_that_cannot_be_held_are_refused(change: dict[str, Any], words: str) -> None:
    """The configuration tells what the names do not show."""
    theirs: Any = diffusers.VQModel(**VQ_DIFFUSION)

    with pytest.raises(ValueError, match=words):
        convert_state_dict(theirs.state_dict(), source_config=VQ_DIFFUSION | change)


def test_spatial_norms_and_continuous_autoencoders_are_refused() -> None:
    """MoVQ's decoder and a KL autoencoder are recognized by their weights alone."""
    movq: Any = diffusers.VQModel(**VQ_DIFFUSION, norm_type="spatial")
    continuous: Any = diffusers.AutoencoderKL()
    with pytest.raises(ValueError, match="spatially conditioned norms"):
        convert_state_dict(movq.state_dict())
    with pytest.raises(ValueError, match="'quantize.embedding.weight' is missing.*continuous autoencoder"):
        convert_state_dict(continuous.state_dict())


def test_widths_that_are_no_multiples_are_refused() -> None:
    """The message names the widths."""
    theirs: Any = diffusers.VQModel(**VQ_DIFFUSION | {"block_out_channels": [64, 96]})
    with pytest.raises(ValueError, match=r"multiple of the first layer's, 64, got \[64, 96\]"):
        convert_state_dict(theirs.state_dict())


# --- back to diffusers -----------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "image_size": 32,
    "base_channels": 32,
    "channel_multiplier": [1, 2, 2],
    "num_res_blocks": 1,
    "latent_channels": 12,
    "embed_dim": 6,
    "num_codes": 64,
    "kmeans_init": False,
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attn_resolutions": [16], "norm_num_groups": 16, "num_res_blocks": 2},
        {"attn_resolutions": [], "mid_block_add_attention": False, "cb_norm": "clip"},
        {"affine_lr": 2.0, "affine_groups": 2},
        {"affine_lr": 2.0, "norm": "l2", "cb_norm": "l2"},
        {"quantizer_type": "residual"},
    ],
    ids=["plain", "attention", "clip", "affine", "l2", "one-level"],
)
def test_export_and_back(fields: dict[str, Any], tmp_path: Path) -> None:
    """diffusers loads the exported folder without complaint and agrees with us, and the folder converts back."""
    model = randomize(VQModel(VQConfig(**SMALL | fields)))

    save_for_diffusers(model, tmp_path)
    theirs, report = diffusers.VQModel.from_pretrained(tmp_path, output_loading_info=True)

    assert not any(report.values())
    assert_same_as_diffusers(model, theirs.eval())
    tokens = model.encode(pixels()).image_tokens
    shape = (*tokens.shape, model.config.embed_dim)
    with torch.no_grad():
        decoded = copy.deepcopy(theirs).double().decode(tokens.flatten(), force_not_quantize=True, shape=shape).sample
        expected = copy.deepcopy(model).double().decode(tokens).decoded_pixel_values
        torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)
    back = convert_checkpoint(tmp_path).model
    assert_same_as_diffusers(back, theirs)
    assert (back.config.image_size, back.config.attn_resolutions) == (32, model.config.attn_resolutions)


def test_an_export_that_diffusers_saved_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """diffusers loads it without a warning and keeps our image size and pixel range."""
    save_for_diffusers(VQModel(VQConfig(**SMALL, pixel_range=[0.0, 1.0])), tmp_path / "export")
    # A handler writes to the standard error that existed when it was made.
    diffusers.utils.logging.disable_default_handler()
    diffusers.utils.logging.add_handler(handler := logging.StreamHandler())
    try:
        theirs: Any = diffusers.VQModel.from_pretrained(tmp_path / "export")
        theirs.save_pretrained(tmp_path / "again")
    finally:
        diffusers.utils.logging.remove_handler(handler)
        diffusers.utils.logging.enable_default_handler()

    conversion = convert_checkpoint(tmp_path / "again")
    assert conversion.model.config.image_size == 32 and conversion.model.config.pixel_range == [0.0, 1.0]
    assert "not expected" not in capfd.readouterr().err


def test_the_sample_size_of_others_is_not_the_image_size(tmp_path: Path) -> None:
    """diffusers writes its default of 32, whatever the model was trained on."""
    theirs: Any = diffusers.VQModel(**VQ_DIFFUSION)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["sample_size"] == 32

    conversion = convert_checkpoint(tmp_path)
    assert conversion.model.config.image_size == 256 and conversion.model.config.pixel_range == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architecture": "sqvae"}, "'sqvae'"),
        ({"quantizer_type": "group", "num_groups": 2}, "2 codes per position"),
        ({"num_attention_heads": 2}, "2 heads"),
        ({"channel_multiplier": [2, 2, 2]}, "wider than its first layer"),
        ({"decoder_channel_multiplier": [1, 1, 2]}, "other widths than its encoder"),
        ({"patch_size": 2}, "reads wavelets of patches"),
        ({"num_downsamples": 1}, "fewer steps down"),
        ({"base_channels": 24, "channel_multiplier": [1, 2, 4]}, r"\[8, 16, 32\] groups"),
        ({"norm": "l2"}, "normalizes vectors"),
        ({"norm": "bn"}, "normalizes vectors"),
    ],
)
def test_what_diffusers_cannot_hold_is_refused(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Nothing is written, and the message names the part."""
    with pytest.raises(ValueError, match=words):
        save_for_diffusers(VQModel(VQConfig(**SMALL | fields)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- taming, LlamaGen, Janus -----------------------------------------------------------------------------------------


def test_taming(tmp_path: Path) -> None:
    """A checkpoint of taming's training converts, with discriminator and attention above the lowest resolution."""
    theirs = randomize(REFERENCES.Taming(ch=32, ch_mult=(1, 2, 2), blocks=2, attention=(1,)))
    state = theirs.state_dict() | {
        "loss.discriminator.main.0.weight": torch.zeros(2),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(2),
    }
    torch.save({"state_dict": state, "epoch": 3, "global_step": 7}, tmp_path / "last.ckpt")

    conversion = convert_checkpoint(tmp_path / "last.ckpt", image_size=64)

    config = conversion.model.config
    assert conversion.layout == "taming"
    assert len(conversion.notes) == 1 and "2 tensors, 'loss.discriminator.main.0.weight'" in conversion.notes[0]
    assert (config.attn_resolutions, config.channel_multiplier, config.num_res_blocks) == ([32], [1, 2, 2], 2)
    assert_same(conversion.model, theirs)


def test_averaged_weights() -> None:
    """Latent diffusion's `model_ema.*` are mentioned in a note, and taken on request."""
    theirs, averaged = randomize(REFERENCES.Taming()), REFERENCES.Taming()
    state = theirs.state_dict() | {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(5)}
    state |= {f"model_ema.{key.replace('.', '')}": value for key, value in averaged.state_dict().items()}

    plain, ema = convert_state_dict(state), convert_state_dict(state, use_ema=True)

    assert "`use_ema` takes these instead" in plain.notes[0] and "took the averaged weights" in ema.notes[0]
    assert_same(plain.model, theirs)
    assert torch.equal(ema.model.get_parameter("decoder.conv_in.weight"), averaged.decoder.conv_in.weight)
    with pytest.raises(ValueError, match="holds no averaged weights"):
        convert_state_dict(theirs.state_dict(), use_ema=True)


def test_llamagen(tmp_path: Path) -> None:
    """Vectors and codes have unit norm, and the file wraps weights and their averages."""
    theirs, averaged = (randomize(REFERENCES.LlamaGen(ch_mult=(1, 1, 2), attention=(2,))) for _ in range(2))
    averaged.quantize.embedding.weight.data.mul_(-1)
    torch.save({"model": theirs.state_dict(), "ema": averaged.state_dict()}, tmp_path / "vq.pt")

    conversion = convert_checkpoint(tmp_path / "vq.pt")

    config = conversion.model.config
    assert conversion.layout == "llamagen" and len(conversion.notes) == 2
    assert config.norm == config.cb_norm == "l2"  # of the vectors too, which only training shows
    assert "averaged" in conversion.notes[0] and "quantize.codebook_used" in conversion.notes[1]
    assert_same(conversion.model, theirs)
    ema = convert_checkpoint(tmp_path / "vq.pt", use_ema=True).model
    assert_same(ema, averaged)


def test_an_ema_that_is_no_weights(tmp_path: Path) -> None:
    """Some files keep the rate of decay under that name."""
    torch.save({"model": REFERENCES.LlamaGen().state_dict(), "ema": 0.99}, tmp_path / "vq.pt")

    assert convert_checkpoint(tmp_path / "vq.pt").layout == "llamagen"
    with pytest.raises(ValueError, match="holds no averaged weights"):
        convert_checkpoint(tmp_path / "vq.pt", use_ema=True)


def test_chameleon(tmp_path: Path) -> None:
    """Meta's file has taming's names; transformers' encoder, which lacks the decoder, gives the same tokens."""
    theirs = randomize(REFERENCES.Taming(attention=()))
    sizes: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1}
    encoder = ChameleonVQVAE(ChameleonVQVAEConfig(**sizes, latent_channels=12, embed_dim=6, num_embeddings=64))
    encoder.load_state_dict(theirs.state_dict(), strict=False)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "vqgan.ckpt")
    (tmp_path / "vqgan.yaml").write_text("model: {params: {n_embed: 64, ddconfig: {resolution: 512}}}")

    model = convert_checkpoint(tmp_path).model

    assert model.config.image_size == 512
    assert_same(model, theirs)
    assert_same(
        model,
        encoder.eval(),
        lambda encoder, images: encoder.encode(images).image_tokens,
        lambda _, tokens: copy.deepcopy(theirs).double().decode(tokens),
    )


def test_showo(tmp_path: Path) -> None:
    """Widths and blocks differ between encoder and decoder, and the highest bit comes first."""
    theirs = randomize(REFERENCES.ShowO())
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")

    conversion = convert_checkpoint(tmp_path)

    config = conversion.model.config
    assert conversion.layout == "showo" and config.pixel_range == [-1.0, 1.0]
    assert (config.channel_multiplier, config.decoder_channel_multiplier) == ([1, 2, 2], [1, 1, 2])
    assert (config.quantizer_type, config.num_codes) == ("lfq", 64)
    assert any("added 5 residual blocks" in note for note in conversion.notes)
    assert any("highest first" in note for note in conversion.notes)
    assert_same(conversion.model, theirs)


def janus(**fields: Any) -> JanusVQVAE:
    """Makes transformers' tokenizer of Janus, for images of 32 x 48 pixels cut to 32 x 32."""
    settings: dict[str, Any] = {
        "base_channels": 32,
        "channel_multiplier": [1, 2, 2],
        "num_res_blocks": 1,
        "num_patches": 8,
    }
    sizes: dict[str, Any] = {"latent_channels": 12, "embed_dim": 6, "num_embeddings": 64}
    return randomize(JanusVQVAE(JanusVQVAEConfig(**settings | sizes | fields)))


@pytest.mark.parametrize("unit_norm", [True, False])
@torch.no_grad()
def test_janus(unit_norm: bool, tmp_path: Path) -> None:
    """Janus compares with codes as they are and decodes their unit vectors, which may differ."""
    theirs = janus()
    weight = theirs.quantize.embedding.weight
    weight.copy_(nn.functional.normalize(weight, dim=1) if unit_norm else weight / 4)
    theirs.save_pretrained(tmp_path)

    conversion = convert_checkpoint(tmp_path)

    # In float64, as in `assert_same`.
    theirs, model, config = theirs.double(), conversion.model.double(), conversion.model.config
    images = pixels()[..., :32].double()
    tokens = model.encode(images).image_tokens
    assert conversion.layout == "janus" and config.image_size == 32
    assert (config.embed_dim, len(conversion.notes)) == ((6, 0) if unit_norm else (12, 1))
    assert len(tokens.unique()) > 10 and torch.equal(tokens.flatten(), theirs.encode(images).image_tokens)
    expected = theirs.decode(cast(torch.LongTensor, tokens.flatten(1)))
    torch.testing.assert_close(model.decode(tokens).decoded_pixel_values, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(images).decoded_pixel_values, expected, rtol=0, atol=1e-5)


def test_a_part_of_a_larger_model_in_shards(tmp_path: Path) -> None:
    """The tokenizer is found inside a checkpoint of the whole Janus that is split over files."""
    theirs = janus()
    state = {f"model.vqmodel.{key}": value for key, value in theirs.state_dict().items()}
    state |= {"model.language_model.norm.weight": torch.zeros(4), "lm_head.weight": torch.zeros(4)}
    files = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(sorted(state))}
    for name in set(files.values()):
        save_file({key: state[key].contiguous() for key in state if files[key] == name}, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "janus", "vq_config": {"num_patches": 16}}))

    conversion = convert_checkpoint(tmp_path)

    assert conversion.layout == "janus" and conversion.model.config.image_size == 64
    assert "'model.vqmodel.', left out 2 other tensors" in conversion.notes[0]
    converted = conversion.model.get_parameter("decoder.up.0.block.0.conv1.weight")
    assert torch.equal(converted, theirs.get_parameter("decoder.up.2.block.0.conv1.weight"))


def test_half_precision_is_widened() -> None:
    """Weights stored in half precision give a float32 model."""
    state = {key: value.half() for key, value in REFERENCES.Taming().state_dict().items()}
    assert {each.dtype for each in convert_state_dict(state).model.parameters()} == {torch.float32}


def test_a_converted_codebook_survives_training() -> None:
    """The codes count as initialized, so the first training batch does not replace them by k-means."""
    state = REFERENCES.Taming().state_dict()
    model = convert_state_dict(state).model.train()
    model(pixels())

    assert torch.equal(model.quantize.codebook.weight, state["quantize.embedding.weight"])
