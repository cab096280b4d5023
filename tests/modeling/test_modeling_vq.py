"""VQModel: shapes, gradients, exactness, loading, precision, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import hf_vq
from hf_vq import VQConfig, VQImageProcessor, VQModel, no_vq
from hf_vq.modeling.autoencoder_vq import VQGANUpsample
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


def test_vqgan_parameter_names():
    """Weights carry the names of the original VQGAN code, with up.0 at the image's resolution."""
    config = VQConfig(**{**VQGAN, "channel_multiplier": [1, 2], "attn_resolutions": [8]})
    shapes = {name: tuple(parameter.shape) for name, parameter in VQModel(config).named_parameters()}

    for name, shape in {
        "encoder.conv_in.weight": (8, 3, 3, 3),
        "encoder.down.0.block.0.norm1.weight": (8,),
        "encoder.down.0.downsample.conv.weight": (8, 8, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (16, 8, 1, 1),
        "encoder.down.1.attn.0.proj_out.weight": (16, 16, 1, 1),
        "encoder.mid.block_1.conv2.weight": (16, 16, 3, 3),
        "encoder.mid.attn_1.q.weight": (16, 16, 1, 1),
        "encoder.norm_out.bias": (16,),
        "encoder.conv_out.weight": (12, 16, 3, 3),
        "quant_conv.weight": (4, 12, 1, 1),
        "post_quant_conv.weight": (12, 4, 1, 1),
        "decoder.conv_in.weight": (16, 12, 3, 3),
        "decoder.mid.block_2.norm2.weight": (16,),
        "decoder.up.1.block.1.conv1.weight": (16, 16, 3, 3),
        "decoder.up.1.upsample.conv.weight": (16, 16, 3, 3),
        "decoder.up.0.block.0.nin_shortcut.weight": (8, 16, 1, 1),
        "decoder.conv_out.weight": (3, 8, 3, 3),
    }.items():
        assert shapes[name] == shape, name
    assert "decoder.up.0.upsample.conv.weight" not in shapes and "encoder.down.0.attn.0.q.weight" not in shapes


def test_attention_can_be_switched_off():
    """Without resolutions and without the middle block there is no attention parameter."""
    model = make_model(VQGAN, attn_resolutions=[], mid_block_add_attention=False)

    assert not [name for name, _ in model.named_parameters() if "attn" in name]
    assert model(make_images()).loss.isfinite()


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_implementations_agree(heads):
    """sdpa and eager give the same pixels; eager also returns weights that sum to one."""
    model = make_model(VQGAN, num_attention_heads=heads).eval()
    pixel_values = make_images()
    with no_vq(model), torch.no_grad():
        fused = model(pixel_values).decoded_pixel_values
        model.set_attn_implementation("eager")
        output = model(pixel_values, output_attentions=True, output_hidden_states=True)

    torch.testing.assert_close(output.decoded_pixel_values, fused)
    assert len(output.attentions) == 5  # one resolution: 1 + 2, the middles: 1 + 1
    assert output.attentions[0].shape == (4, heads, 64, 64)
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(4, heads, 64))
    assert len(output.hidden_states) == 1 + 10


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_softmax_attention(heads):
    """The block adds to its input, head by head, softmax(q k / sqrt(head_dim)) v of the normalized input."""
    block = make_model(VQGAN, num_attention_heads=heads).encoder.mid.attn_1
    hidden_states = torch.randn(2, 16, 3, 5)
    normed = block.norm(hidden_states)
    outputs = []
    for q, k, v in zip(
        *(conv(normed).flatten(2).chunk(heads, dim=1) for conv in (block.q, block.k, block.v)), strict=True
    ):
        weights = (q.transpose(1, 2) @ k / (16 / heads) ** 0.5).softmax(-1)
        outputs.append(v @ weights.transpose(1, 2))
    expected = hidden_states + block.proj_out(torch.cat(outputs, dim=1).reshape(2, 16, 3, 5))

    torch.testing.assert_close(block(hidden_states)[0], expected)


def test_sqvae_decodes_into_the_pixel_range():
    """The small network's last layer bounds its pixels by [-1, 1], for any codes."""
    pixels = make_model().eval().decode(quantized_states=50 * torch.randn(2, 4, 4, 4)).decoded_pixel_values

    assert pixels.abs().max() <= 1
    assert pixels.min() < 0 < pixels.max()


def test_sqvae_needs_no_projection_for_codes_of_its_width():
    """The 1 x 1 convolutions exist only where the code dimension differs from the width."""
    assert not any("quant_conv" in name for name, _ in make_model(embed_dim=16).named_parameters())
    assert any("quant_conv" in name for name, _ in make_model(embed_dim=4).named_parameters())


def test_gray_images():
    """A model of one channel takes and gives images of one channel."""
    assert make_model(num_channels=1)(make_images(2, 1, 16, 16)).decoded_pixel_values.shape == (2, 1, 16, 16)


@BOTH
def test_activation_checkpointing_changes_nothing(fields):
    """Recomputation gives the same loss, gradients and buffers (codebook clocks, running statistics), bit for bit."""
    results = []
    for checkpointing in (False, True):
        model = make_model(fields)
        if checkpointing:
            # The second name is that of older versions of transformers.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
            assert sum(getattr(module, "gradient_checkpointing", False) for module in model.modules()) > 2
        torch.manual_seed(2)
        for _ in range(2):
            loss = model(make_images()).loss
            loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())))

    (loss, gradients, buffers), (loss_2, gradients_2, buffers_2) = results
    assert torch.equal(loss, loss_2)
    for name, gradient in gradients.items():
        assert (gradient is None and gradients_2[name] is None) or torch.equal(gradient, gradients_2[name]), name
    for name, buffer in buffers.items():
        assert torch.equal(buffer, buffers_2[name]), name


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@BOTH
def test_half_precision_keeps_the_quantizer_in_float32(fields, dtype, tmp_path):
    """Loaded in half precision, codes and lookups stay float32, pixels are half, and tokens decode to them."""
    model = make_model(fields)
    model(make_images())
    model.save_pretrained(tmp_path)
    loaded = VQModel.from_pretrained(tmp_path, dtype=dtype)
    output = loaded(make_images())

    assert loaded.get_input_embeddings().weight.dtype == dtype
    for name, tensor in loaded.quantize.state_dict().items():
        assert not tensor.is_floating_point() or tensor.dtype == torch.float32, name
    assert output.decoded_pixel_values.dtype == dtype
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert loaded.get_codebook_entry(output.image_tokens).dtype == torch.float32
    assert torch.equal(loaded.decode(output.image_tokens).decoded_pixel_values, output.decoded_pixel_values)


@BOTH
def test_autocast(fields):
    """Training under autocast works, with losses in float32 and gradients for every weight of the encoder."""
    model = make_model(fields)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(make_images())
    output.loss.backward()

    assert output.loss.dtype == output.commitment_loss.dtype == torch.float32
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


@BOTH
def test_channels_last(fields):
    """A model in channels-last layout gives the same pixels."""
    model = make_model(fields)
    model(make_images())
    model.eval()
    expected = model(make_images()).decoded_pixel_values
    model.to(memory_format=torch.channels_last)
    output = model(make_images().to(memory_format=torch.channels_last))

    torch.testing.assert_close(output.decoded_pixel_values, expected, atol=1e-4, rtol=1e-4)
    assert output.decoded_pixel_values.is_contiguous(memory_format=torch.channels_last)
    decoded = model.decode(output.image_tokens).decoded_pixel_values
    assert torch.equal(decoded, output.decoded_pixel_values)


def test_upsampling_is_repetition_and_a_convolution():
    """The one step in which it is done on a CPU has the value and the gradients of the two."""
    layer = VQGANUpsample(6).double()
    images = torch.randn(2, 6, 5, 7, dtype=torch.double, requires_grad=True)
    repeated = F.interpolate(images, scale_factor=2, mode="nearest")
    inputs = [images, *layer.parameters()]

    actual = layer(images)
    expected = F.conv2d(repeated, layer.conv.weight, layer.conv.bias, padding=1)

    torch.testing.assert_close(actual, expected)
    for one, other in zip(
        torch.autograd.grad(actual.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@BOTH
def test_layout_of_codes_does_not_matter(fields):
    """Codes decode to the same bits whatever their layout in memory."""
    model = make_model(fields).eval()
    codes = torch.randn(2, 4, 4, 6)

    expected = model.decode(quantized_states=codes).decoded_pixel_values
    other = codes.contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.decode(quantized_states=other).decoded_pixel_values, expected)


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


def test_tuples():
    """return_dict=False gives the outputs as plain tuples, in the documented order."""
    model = make_model().eval()
    output, encoded = model(make_images()), model.encode(make_images())

    assert torch.equal(model(make_images(), return_dict=False)[0], output.loss)
    assert torch.equal(model.encode(make_images(), return_dict=False)[0], encoded.image_tokens)
    (pixels,) = model.decode(encoded.image_tokens, return_dict=False)
    assert torch.equal(pixels, output.decoded_pixel_values)


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (torch.zeros(1, 1, 16, 16), "takes images of 3 channels, got 1"),
        (torch.zeros(1, 16, 16, 3), "takes images of 3 channels, got 16"),
        (torch.zeros(3, 16, 16), r"must have the shape \(batch, 3, height, width\), got \(3, 16, 16\)"),
        (torch.zeros(1, 3, 18, 16), "multiples of 4, the pixels per token, got 18 x 16"),
        (torch.zeros(1, 3, 0, 16), "multiples of 4, the pixels per token, got 0 x 16"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"floating-point numbers in \[-1, 1\], got torch.uint8"),
    ],
)
def test_bad_images_are_refused(pixel_values, message):
    """Wrong channels, rank, size or dtype raise in encode and forward, and say what is expected."""
    model = make_model()
    for method in (model, model.encode):
        with pytest.raises(ValueError, match=message):
            method(pixel_values)


@pytest.mark.parametrize(
    ("image_tokens", "message"),
    [
        (torch.full((1, 4, 4), 32), r"ids must be in \[0, 32\)"),
        (torch.full((1, 4, 4), -1), r"ids must be in \[0, 32\)"),
        (torch.zeros(1, 4, 4), "must be integers, got torch.float32"),
        (torch.zeros(1, 4, 4, dtype=torch.bool), "must be integers, got torch.bool"),
        (torch.zeros(1, 16, dtype=torch.long), r"shape \(batch, height, width\), got \(1, 16\)"),
        (torch.zeros(1, 4, 4, 1, dtype=torch.long), r"shape \(batch, height, width\), got \(1, 4, 4, 1\)"),
    ],
)
def test_bad_tokens_are_refused(image_tokens, message):
    """Ids out of range, other dtypes and ranks raise a ValueError that says what is expected."""
    with pytest.raises(ValueError, match=message):
        make_model().eval().decode(image_tokens)


@pytest.mark.parametrize(("kind", "groups"), [("group", "2"), ("residual", "1 to 2")])
def test_bad_tokens_of_groups_are_refused(kind, groups):
    """A grouped model wants its last axis, of which a residual one takes the first levels alone."""
    model = make_model(quantizer_type=kind, num_groups=2)

    with pytest.raises(ValueError, match=rf"shape \(batch, height, width, {groups}\) for 2 groups, got \(1, 4, 4\)"):
        model.decode(torch.zeros(1, 4, 4, dtype=torch.long))


def test_decode_takes_one_input():
    """Neither or both of tokens and codes is an error, and codes must have the code dimension."""
    model = make_model().eval()
    tokens, codes = torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4, 4)

    with pytest.raises(ValueError, match="exactly one"):
        model.decode()
    with pytest.raises(ValueError, match="exactly one"):
        model.decode(tokens, quantized_states=codes)
    with pytest.raises(ValueError, match=r"shape \(batch, 4, height, width\), got \(1, 5, 4, 4\)"):
        model.decode(quantized_states=torch.zeros(1, 5, 4, 4))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_tokens_of_any_integer_dtype(dtype):
    """Tokens that were stored compactly decode like int64."""
    model = make_model().eval()
    tokens = model.encode(make_images()).image_tokens

    expected = model.decode(tokens).decoded_pixel_values
    assert torch.equal(model.decode(tokens.to(dtype)).decoded_pixel_values, expected)
