"""VQModel: shapes, gradients, exactness, loading."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import hf_vq
from hf_vq import VQConfig, VQImageProcessor, VQModel, no_vq
from hf_vq.modeling.codebook_vq import Codebook

VQGAN = {
    "image_size": 16,
    "base_channels": 8,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 12,
    "embed_dim": 4,
    "num_codes": 32,
}
SQVAE = {"architecture": "sqvae", "image_size": 16, "base_channels": 16, "embed_dim": 4, "num_codes": 32}
BOTH = pytest.mark.parametrize("fields", [VQGAN, SQVAE], ids=["vqgan", "sqvae"])


def make_model(fields=SQVAE, **changes):
    """A small model with the same weights every time."""
    torch.manual_seed(0)
    return VQModel(VQConfig(**{**fields, **changes}))


def make_images(*shape, seed=1):
    """Smooth random images in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (4, 3, 16, 16)
    coarse = torch.rand(*shape[:2], 4, 4, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=shape[2:], mode="bilinear")


@BOTH
def test_shapes(fields):
    """Tokens are int64 on a grid of the image's size over the factor; pixels come back in the image's shape."""
    model = make_model(fields).eval()
    factor = model.config.downsample_factor
    encoded = model.encode(make_images(2, 3, 16, 24))

    assert encoded.image_tokens.shape == (2, 16 // factor, 24 // factor)
    assert encoded.image_tokens.dtype == torch.int64
    assert encoded.quantized_last_hidden_state.shape == (2, 4, 16 // factor, 24 // factor)
    assert encoded.last_hidden_state.shape == encoded.quantized_last_hidden_state.shape
    assert model.decode(encoded.image_tokens).decoded_pixel_values.shape == (2, 3, 16, 24)


@BOTH
@pytest.mark.parametrize(
    "quantizer",
    [{}, {"norm": "l2", "cb_norm": "l2"}, {"affine_lr": 2.0}, {"quantizer_type": "group", "num_groups": 2}],
)
def test_decoding_tokens_equals_the_reconstruction(fields, quantizer):
    """In eval, decode(encode(x).image_tokens) is forward's reconstruction bit for bit, with and without gradients."""
    model = make_model(fields, **quantizer)
    pixel_values = make_images()
    model(pixel_values)  # initializes the codes
    model.eval()
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            output = model(pixel_values)
            encoded = model.encode(pixel_values)
            assert torch.equal(encoded.image_tokens, output.image_tokens)
            decoded = model.decode(encoded.image_tokens).decoded_pixel_values
            assert torch.equal(decoded, output.decoded_pixel_values)
            from_codes = model.decode(quantized_states=encoded.quantized_last_hidden_state).decoded_pixel_values
            assert torch.equal(from_codes, output.decoded_pixel_values)
            assert torch.equal(model.get_codebook_entry(encoded.image_tokens), encoded.quantized_last_hidden_state)


@pytest.mark.parametrize("quantizer_type", ["group", "residual"])
@pytest.mark.parametrize("share_codebook", [True, False])
def test_groups_give_tokens_a_last_axis(quantizer_type, share_codebook):
    """Grouped and residual tokens are (batch, h, w, groups), ids are global, and they decode."""
    model = make_model(quantizer_type=quantizer_type, num_groups=2, share_codebook=share_codebook)
    tokens = model(make_images()).image_tokens

    assert tokens.shape == (4, 4, 4, 2)
    if not share_codebook:
        assert tokens[..., 0].max() < 16 <= tokens[..., 1].min()
    assert model.eval().decode(tokens).decoded_pixel_values.shape == (4, 3, 16, 16)


@BOTH
def test_every_parameter_learns(fields):
    """The reconstruction alone moves every weight of encoder and decoder: the gradient passes the quantizer."""
    model = make_model(fields, sync_nu=0.0)
    model(make_images()).reconstruction_loss.backward()

    for name, parameter in model.named_parameters():
        if not name.startswith("quantize."):
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert model.get_input_embeddings().weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_loss(kind):
    """The loss is the pixel error on [0, 1] plus commitment_weight times the commitment loss."""
    model = make_model(reconstruction_loss=kind, commitment_weight=3.0)
    pixel_values = make_images()
    output = model(pixel_values)
    ours, theirs = (images / 2 + 0.5 for images in (output.decoded_pixel_values, pixel_values))
    error = F.l1_loss(ours, theirs) if kind == "l1" else F.mse_loss(ours, theirs)

    torch.testing.assert_close(output.reconstruction_loss, error)
    torch.testing.assert_close(output.loss, error + 3 * output.commitment_loss)
    assert output.commitment_loss > 0
    assert model(pixel_values, return_loss=False).loss is None


def test_quantization_error_and_statistics():
    """The error is the mean squared difference per dimension, and tokens give perplexity and usage."""
    model = make_model()
    pixel_values = make_images()
    model(pixel_values)
    model.eval()
    encoded, output = model.encode(pixel_values), model(pixel_values)
    counts = torch.bincount(encoded.image_tokens.flatten(), minlength=32)
    frequency = counts / counts.sum()

    error = F.mse_loss(encoded.last_hidden_state, encoded.quantized_last_hidden_state)
    torch.testing.assert_close(output.quantization_error, error)
    torch.testing.assert_close(output.usage, (counts > 0).float().mean())
    torch.testing.assert_close(output.perplexity, (-torch.xlogy(frequency, frequency).sum()).exp())
    assert not output.quantization_error.requires_grad


def test_training_reduces_the_loss():
    """A few optimizer steps on the loss fit a batch; codes are reported as rewritten when k-means sets them only."""
    model = make_model(replace_freq=0)
    pixel_values = make_images()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(36):
        output = model(pixel_values)
        assert (output.replaced is not None) == (not losses)
        losses.append(output.reconstruction_loss.item())
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    assert losses[-1] < 0.5 * losses[0]


@BOTH
def test_eval_changes_nothing(fields):
    """Forwards in eval leave every tensor of the state dict as it was."""
    model = make_model(fields)
    model(make_images())
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(make_images(seed=5))

    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@BOTH
def test_no_vq(fields):
    """Without quantization there are no tokens, no commitment loss, and the codes are the vectors themselves."""
    model = make_model(fields)
    with no_vq(model):
        encoded, output = model.encode(make_images()), model(make_images())

    assert encoded.image_tokens is None and output.image_tokens is None and output.quantization_error is None
    assert torch.equal(encoded.quantized_last_hidden_state, encoded.last_hidden_state)
    assert torch.equal(output.loss, output.reconstruction_loss)


@pytest.mark.parametrize("fields", [VQGAN, SQVAE, SQVAE | {"norm": "bn"}], ids=["vqgan", "sqvae", "batch norm"])
def test_save_and_load(fields, tmp_path):
    """A trained model comes back with equal tensors and the same reconstruction, by its own class and AutoModel."""
    model = make_model(fields)
    model(make_images())
    model.eval().save_pretrained(tmp_path)
    for loaded in (VQModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is VQModel and not loaded.training
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name]), name
        assert torch.equal(model(make_images()).decoded_pixel_values, loaded(make_images()).decoded_pixel_values)


def test_the_package_registers_its_classes(tmp_path):
    """After the import of hf_vq the Auto classes find config, model and image processor without remote code."""
    make_model().save_pretrained(tmp_path)
    VQImageProcessor(image_size=16).save_pretrained(tmp_path)

    assert type(AutoConfig.from_pretrained(tmp_path)) is VQConfig
    assert type(AutoModel.from_config(VQConfig(**SQVAE))) is VQModel
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is VQImageProcessor


def test_public_names_exist():
    """Everything in __all__ is there, and an unknown name is an AttributeError."""
    for name in hf_vq.__all__:
        assert getattr(hf_vq, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        hf_vq.Nonsense  # noqa: B018


@BOTH
def test_missing_weights_are_initialized(fields, tmp_path):
    """Whatever a checkpoint lacks is set as in a new model: nothing is left as the memory happened to be."""
    settings = {"affine_lr": 1.0, "alternating_steps": 1, "alternating_kind": "sgd", "replace_policy": "busy"}
    make_model(fields, **settings).save_pretrained(tmp_path)
    kept = {"encoder.conv_in.weight", "encoder.conv.0.weight"}
    path = tmp_path / "model.safetensors"
    weights = {name: torch.full_like(tensor, 7) for name, tensor in load_file(path).items() if name in kept}
    save_file(weights, path, metadata={"format": "pt"})
    model = VQModel.from_pretrained(tmp_path)

    assert (model.get_input_embeddings().weight == 7).all()
    (codebook,) = [module for module in model.modules() if isinstance(module, Codebook)]
    assert 0.7 < codebook.weight.std() < 1.3
    assert not codebook.initialized and codebook.unused_steps.eq(0).all()
    for name in ("affine_scale", "affine_bias", "momentum", "last_counts", "samples", "num_samples"):
        assert getattr(codebook, name).eq(0).all(), name
    for name, module in model.named_modules():
        if isinstance(module, (nn.GroupNorm, nn.BatchNorm2d)):
            assert module.weight.eq(1).all() and module.bias.eq(0).all(), name
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean.eq(0).all() and module.running_var.eq(1).all(), name
            assert module.num_batches_tracked == 0, name
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module is not model.get_input_embeddings():
            bound = module.weight[0].numel() ** -0.5
            assert 0.8 * bound < module.weight.abs().max() <= bound, name
            assert module.bias.abs().max() <= bound, name
    assert model(make_images()).loss.isfinite()


def test_a_loaded_codebook_is_not_initialized_again(tmp_path):
    """Training goes on from a checkpoint's codes; a model saved before its first batch still gets k-means."""
    make_model().save_pretrained(tmp_path / "new")
    trained = make_model()
    trained(make_images())
    trained.save_pretrained(tmp_path / "trained")

    assert VQModel.from_pretrained(tmp_path / "new").train()(make_images()).replaced.all()
    assert VQModel.from_pretrained(tmp_path / "trained").train()(make_images()).replaced is None


@BOTH
@pytest.mark.compiles
def test_compile_and_export(fields):
    """encode and decode trace into one graph each, and export, with the tokens and pixels of plain execution."""
    model = make_model(fields)
    pixel_values = make_images()
    model(pixel_values)
    model.eval()

    class RoundTrip(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            tokens = self.model.encode(pixel_values).image_tokens
            return tokens, self.model.decode(tokens).decoded_pixel_values

    with torch.no_grad():
        tokens, pixels = RoundTrip()(pixel_values)
        compiled = torch.compile(RoundTrip(), fullgraph=True, backend="eager")
        exported = torch.export.export(RoundTrip(), (pixel_values,)).module()
        for traced in (compiled, exported):
            traced_tokens, traced_pixels = traced(pixel_values)
            assert torch.equal(traced_tokens, tokens)
            torch.testing.assert_close(traced_pixels, pixels)
