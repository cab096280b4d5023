"""Weights of other projects: the same tokens and the same pixels as the original, or a clear refusal."""

from __future__ import annotations

import copy
import json
import logging
import runpy
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

import hf_vq
from hf_vq import GroupVectorQuant, VectorQuant, VQConfig, VQModel
from hf_vq.convert.checkpoints import convert_checkpoint, convert_state_dict, save_for_diffusers
from hf_vq.convert.layouts import LAYOUTS, Layout, foreign_key
from hf_vq.convert.vqtorch import load_vqtorch_state_dict

REFERENCES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("vqgan_references.py"))))
VQTORCH = Path(__file__).parents[2] / "data" / "vqtorch_reference.safetensors"
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


def randomize(model: Any) -> Any:
    """Sets weights so that every one counts, also norms and biases, and puts codes where the vectors are."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.ndim == 1 else 0.01))
            if name.startswith(("quantize.", "quant_conv.")):
                nn.init.normal_(parameter, std=0.5)
    return model.eval()


def pixels(size: int = 32) -> torch.Tensor:
    """Draws two images in [-1, 1] that are not square."""
    return torch.rand(2, 3, size, size + 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def assert_same(
    model: VQModel,
    theirs: Any,
    encode: Callable[[Any, torch.Tensor], torch.Tensor] = lambda theirs, images: theirs.encode(images),
    decode: Callable[[Any, torch.Tensor], torch.Tensor] = lambda theirs, tokens: theirs.decode(tokens),
) -> None:
    """Checks that all tokens are equal, and the pixels decoded from them to 1e-5. The images use many codes.

    In float64: in float32 the rounding of a dozen layers, which depends on the number of threads, can pass 1e-5 or
    decide a near tie of two codes.
    """
    model, theirs, images = copy.deepcopy(model).double(), copy.deepcopy(theirs).double(), pixels().double()
    ours = model.encode(images).image_tokens

    assert len(ours.unique()) > 10
    assert torch.equal(ours, encode(theirs, images).reshape(ours.shape))
    expected = decode(theirs, ours)
    torch.testing.assert_close(model.decode(ours).decoded_pixel_values, expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-2


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


# --- what does not fit -----------------------------------------------------------------------------------------------


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
        ("quantize.embed.weight", "Gumbel"),
        ("quantize.proj.weight", "Gumbel"),
        ("quantize.used", "remap"),
        ("other.encoder.conv_in.weight", "Found 2 tokenizers, at '', 'other.'"),
    ],
)
def test_other_quantizers_and_several_tokenizers_are_refused(extra: str, words: str) -> None:
    """Each has a message with the reason."""
    with pytest.raises(ValueError, match=words):
        convert_state_dict(REFERENCES.Taming().state_dict() | {extra: torch.zeros(1)})


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
    with pytest.raises(ValueError, match="`layout` must be one of 'taming', 'janus', 'llamagen', 'diffusers'.*'x'"):
        convert_state_dict({}, layout="x")


def test_the_layout_can_be_given() -> None:
    """With one resolution, taming and Janus have the same names but decode codes differently."""
    state = REFERENCES.Taming(ch_mult=(1,), attention=(0,)).state_dict()

    assert convert_state_dict(state).model.config.embed_dim == 6
    assert convert_state_dict(state, layout="janus").model.config.embed_dim == 12


class Surprise:
    """An object that unpickling would have to construct."""


def test_unsafe_and_unreadable_files(tmp_path: Path) -> None:
    """Pickled objects, broken files, other kinds, and missing or ambiguous files have their messages."""
    torch.save({"state_dict": {}, "callback": Surprise()}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="reading anything else can run code"):
        convert_checkpoint(tmp_path / "a.ckpt")
    for name in ("b.pth", "b.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 broken")
        with pytest.raises(ValueError, match=f"'{name}' cannot be read"):
            convert_checkpoint(tmp_path / name)
    torch.save([1], tmp_path / "c.pt")
    with pytest.raises(ValueError, match="holds a list"):
        convert_checkpoint(tmp_path / "c.pt")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="'notes.txt'"):
        convert_checkpoint(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        convert_checkpoint(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="found 4 of them, 'a.ckpt', 'b.pth'"):
        convert_checkpoint(tmp_path)
    (tmp_path / "pipeline" / "vqvae").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="found none. Its folders are 'vqvae'"):
        convert_checkpoint(tmp_path / "pipeline")


def _cycle(length: int) -> dict[str, Any]:
    """Dictionaries, each of which is the `state_dict` or the `model` of the one before, in a circle."""
    circle: list[dict[str, Any]] = [{} for _ in range(length)]
    for number, each in enumerate(circle):
        each["model" if number % 2 else "state_dict"] = circle[(number + 1) % length]
    return circle[0]


@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_state_dict_that_contains_itself_is_refused(length: int, tmp_path: Path) -> None:
    """It would be opened forever."""
    torch.save(_cycle(length), tmp_path / "a.pt")

    with pytest.raises(ValueError, match="contains itself"):
        convert_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(1).expand(10**5, 10**5)},
        {"a": torch.zeros(8).as_strided((2, 5), (3, 1)).as_strided((10**4, 8), (0, 1))},
        {"a": torch.zeros(100).as_strided((99, 99), (0, 1))},
        {str(number): torch.zeros(10**4, dtype=torch.bfloat16) for number in range(2)}
        | dict.fromkeys(map(str, range(2, 5000)), torch.ones(10**4, dtype=torch.bfloat16)),
        {"a": torch.empty(10**6, 10**6, device="meta")},
        {"a": torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**6, 10**6))},
    ],
)
def test_tensors_that_claim_more_than_the_file_holds_are_refused(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """A few bytes would become many gigabytes when they are converted to float32."""
    torch.save({"state_dict": tensors}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 2**20

    with pytest.raises(
        ValueError, match=r"more than the file of [\d,]+ bytes holds|not an ordinary tensor|cannot be read"
    ):
        convert_checkpoint(tmp_path / "a.pt")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """`torch.save` compresses nothing, but its reader unpacks what somebody has compressed."""
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))

    with pytest.raises(ValueError, match="claim to hold"):
        convert_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[1]"),
        ("config.json", "{"),
        ("config.json", "[" * 10**5),
        ("config.json", '{"vq_config": 5}'),
        ("model.safetensors.index.json", "{}"),
        ("model.safetensors.index.json", '{"weight_map": {"a": ["b"]}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../b"}}'),
    ],
)
def test_malformed_json_beside_weights_is_a_message(name: str, text: str, tmp_path: Path) -> None:
    """Whatever is wrong in it, it ends in a `ValueError` that names the file."""
    (tmp_path / name).write_text(text)
    if name == "config.json":
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")

    with pytest.raises(ValueError, match=f"'{name}'"):
        convert_checkpoint(tmp_path)


# --- vqtorch ---------------------------------------------------------------------------------------------------------

with safe_open(VQTORCH, "pt") as _file:
    SETTINGS = {name: json.loads(text) for name, text in _file.metadata().items()}


@pytest.mark.parametrize("case", [name for name in sorted(SETTINGS) if not name.endswith("_pool")])
def test_vqtorch_states(case: str) -> None:
    """A layer with the state of each reference case gives the reference's output, codes and loss."""
    with safe_open(VQTORCH, "pt") as file:
        data = {key.split(".")[1]: file.get_tensor(key) for key in file.keys() if key.startswith(f"{case}.")}
    settings = {key: value for key, value in SETTINGS[case].items() if key not in ("task_loss", "total")}
    layer = getattr(hf_vq, settings.pop("cls"))(**settings).double()
    state = {"codebook.weight": data["codebook"]}
    if "affine_scale" in data:
        state |= {"affine_transform.scale": data["affine_scale"], "affine_transform.bias": data["affine_bias"]}

    load_vqtorch_state_dict(layer, state)

    z_q, out = layer(data["z"])
    torch.testing.assert_close(z_q, data["z_q"], rtol=0, atol=1e-10)
    torch.testing.assert_close(out.loss, data["commit_loss"], rtol=0, atol=1e-10)
    assert torch.equal(out.q, data["codes"])


def test_vqtorch_clocks_and_shared_maps() -> None:
    """Initialization and the patience with unused codes continue, and separate codebooks share one map."""
    layer = GroupVectorQuant(8, 6, groups=2, share=False, affine_lr=2.0, replace_freq=20, kmeans_init=True, norm="bn")
    scale, bias = torch.randn(1, 4), torch.randn(1, 4)
    state = {
        "codebook.weight": torch.randn(6, 4),
        "affine_transform.scale": scale,
        "affine_transform.bias": bias,
        "_counts": torch.tensor([20.0, 1.0, 7.0, 20.0, 20.0, 20.0]),
        "data_initialized": torch.ones(1),
    }
    state |= {f"norm_layer.{key}": value for key, value in nn.BatchNorm2d(8).state_dict().items()}
    state["norm_layer.running_mean"] = torch.randn(8)

    load_vqtorch_state_dict(layer, state)

    assert layer.codebook.unused_steps.tolist() == [0, 19, 13, 0, 0, 0] and bool(layer.codebook.initialized)
    torch.testing.assert_close(layer.get_codebook(), state["codebook.weight"] * (1 + 2 * scale) + 2 * bias)
    assert torch.equal(layer.get_buffer("norm_layer.running_mean"), state["norm_layer.running_mean"])
    load_vqtorch_state_dict(layer, state | {"data_initialized": torch.zeros(1)})
    assert not layer.codebook.initialized


def test_vqtorch_running_map() -> None:
    """Running moments give the codes of the reference's formula."""
    layer = VectorQuant(3, 5, affine_mode="running")
    names = ("running_ze_mean", "running_ze_var", "running_c_mean", "running_c_var")
    state = {f"affine_transform.{name}": torch.rand(1, 3) + 0.5 for name in names}
    state["affine_transform.running_statistics_initialized"] = torch.ones(1)
    state["codebook.weight"] = torch.randn(5, 3)

    load_vqtorch_state_dict(layer, state)

    ze_mean, ze_var, c_mean, c_var = (state[f"affine_transform.{name}"] for name in names)
    expected = (state["codebook.weight"] - c_mean) * (ze_var / (c_var + 1e-8)).sqrt() + ze_mean
    torch.testing.assert_close(layer.get_codebook(), expected)


def test_a_vqtorch_state_of_other_settings_is_refused() -> None:
    """All differences are listed, and the layer keeps what it had."""
    layer = VectorQuant(8, 32, affine_lr=2.0)
    before = layer.codebook.weight.clone()
    state = {"codebook.weight": torch.zeros(16, 8), "norm_layer.weight": torch.ones(8)}

    with pytest.raises(ValueError) as caught:
        load_vqtorch_state_dict(layer, state)

    message = str(caught.value)
    assert "missing: 'affine_transform.bias', 'affine_transform.scale'" in message
    assert "not known to this layer: 'norm_layer.weight'" in message
    assert "'codebook.weight' has the shape (16, 8), expected (32, 8)" in message
    assert torch.equal(layer.codebook.weight, before)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("_counts", torch.ones(4), r"'_counts' has the shape \(4,\), expected \(6,\)"),
        ("data_initialized", torch.ones(2), r"'data_initialized' has the shape \(2,\), expected \(1,\)"),
    ],
)
def test_misshapen_vqtorch_clocks_are_refused(key: str, value: torch.Tensor, words: str) -> None:
    """They are refused before anything is copied."""
    layer = VectorQuant(4, 6, replace_freq=20)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}

    with pytest.raises(ValueError, match=words):
        load_vqtorch_state_dict(layer, {"codebook.weight": torch.zeros(6, 4), key: value})

    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_new_layout_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is found out by its names, and converts with the fields that it adds."""
    row = Layout(
        "mine",
        "net_encoder.down.0.block.0.conv1.weight",
        lambda keys: any(key.startswith("net_encoder.") for key in keys),
        renames=((r"^(encoder|decoder)\.", r"net_\1."),),
        counts_down=False,
        fields=lambda weights, notes: {"beta": 0.5},
    )
    monkeypatch.setitem(LAYOUTS, row.name, row)
    config = VQConfig(base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=8, image_size=16)
    model = VQModel(config).eval()
    theirs = {foreign_key(key, "mine", 2): value.detach() for key, value in model.named_parameters()}

    conversion = convert_state_dict(theirs, image_size=16)

    assert conversion.layout == "mine" and conversion.model.config.beta == 0.5
    pixel_values = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(conversion.model.encode(pixel_values).image_tokens, model.encode(pixel_values).image_tokens)
