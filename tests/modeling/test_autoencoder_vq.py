"""The networks around the quantizer: names of parameters, attention, sizes, memory."""

import pytest
import torch
import torch.nn.functional as F

from hf_vq import VQConfig, VQModel, no_vq
from hf_vq.modeling.autoencoder_vq import VQGANUpsample

from .test_modeling_vq import BOTH, VQGAN, make_images, make_model


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
