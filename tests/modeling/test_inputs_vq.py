"""What VQModel takes and refuses: images, tokens, and their types."""

import pytest
import torch

from hf_vq import VQModel

from .test_modeling_vq import BOTH, make_images, make_model


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


@BOTH
def test_layout_of_codes_does_not_matter(fields):
    """Codes decode to the same bits whatever their layout in memory."""
    model = make_model(fields).eval()
    codes = torch.randn(2, 4, 4, 6)

    expected = model.decode(quantized_states=codes).decoded_pixel_values
    other = codes.contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.decode(quantized_states=other).decoded_pixel_values, expected)


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
