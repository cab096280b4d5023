"""VQImageProcessor: every kind of image becomes the right pixels, and postprocess brings them back."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq import VQImageProcessor


@pytest.fixture
def pixels():
    """Random 8-bit colors, (32, 32, 3)."""
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def processor():
    """A processor for 32 px RGB images."""
    return VQImageProcessor(image_size=32)


def as_8_bit(processor, image):
    """The (height, width, channels) 8-bit pixels that a model would see of one image."""
    pixel_values = processor(image, return_tensors="pt").pixel_values
    return processor.postprocess(pixel_values, output_type="np")[0]


def test_range_and_layout(processor):
    """Black is -1 and white is 1, exactly, in float32, channels first."""
    black, white = (Image.new("RGB", (32, 32), color) for color in ("black", "white"))
    pixel_values = processor([black, white], return_tensors="pt").pixel_values

    assert pixel_values.shape == (2, 3, 32, 32)
    assert pixel_values.dtype == torch.float32
    assert torch.equal(pixel_values[0], torch.full((3, 32, 32), -1.0))
    assert torch.equal(pixel_values[1], torch.full((3, 32, 32), 1.0))


def test_postprocess_inverts_preprocessing(processor, pixels):
    """An image of the model's size survives the round trip bit for bit, as PIL image, array and tensor."""
    pixel_values = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values

    (image,) = processor.postprocess(pixel_values)
    assert np.array_equal(np.asarray(image), pixels)
    assert np.array_equal(processor.postprocess(pixel_values, output_type="np")[0], pixels)
    tensor = processor.postprocess(pixel_values, output_type="pt")[0]
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), pixels)


def test_postprocess_clamps_and_rounds(processor):
    """Values beyond [-1, 1] saturate and the nearest of 256 levels is taken."""
    values = torch.tensor([-3.0, -1.0, -1 + 2 * 0.6 / 255, 1.0, 7.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)

    images = processor.postprocess(values.to(torch.float32), output_type="pt")
    assert images[0, 0, 0].tolist() == [0, 0, 1, 255, 255]


def test_resize_keeps_the_aspect_and_crops_the_middle(processor):
    """A wide image is scaled by its shorter side and loses equally at both ends."""
    wide = np.zeros((64, 192, 3), dtype=np.uint8)
    wide[:, 64:128] = 255

    assert (as_8_bit(processor, Image.fromarray(wide))[:, 2:-2] == 255).all()


def test_a_smaller_image_is_enlarged(processor):
    """An image smaller than the crop is scaled up, not padded."""
    assert (as_8_bit(processor, Image.new("RGB", (7, 5), (10, 200, 30))) == (10, 200, 30)).all()


def test_a_crop_beyond_the_image_is_refused():
    """Without resizing, an image smaller than the crop is an error that gives both sizes."""
    processor = VQImageProcessor(image_size=32, do_resize=False)

    with pytest.raises(ValueError, match="20 x 40 pixels is smaller than the crop of 32 x 32"):
        processor(Image.new("RGB", (40, 20)))


def test_transparency_is_laid_over_white(processor):
    """RGBA, gray with alpha and palettes with a transparent entry all blend with white."""
    rgba = Image.new("RGBA", (32, 32), (0, 0, 0, 51))
    gray = Image.new("LA", (32, 32), (0, 51))
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.info["transparency"] = 0

    assert (as_8_bit(processor, rgba) == 204).all()
    assert (as_8_bit(processor, gray) == 204).all()
    assert (as_8_bit(processor, palette) == 255).all()


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_converted_as_pillow_does(processor, pixels, mode):
    """Gray, palette, bilevel and other color spaces become RGB."""
    image = Image.fromarray(pixels).convert(mode)

    assert np.array_equal(as_8_bit(processor, image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_16_bit_gray_is_scaled_not_clipped(processor, dtype):
    """16-bit gray images use the whole 8-bit range, as an image or an array."""
    values = np.linspace(0, 65535, 32 * 32).round().astype(dtype).reshape(32, 32)
    image = Image.fromarray(values)
    assert image.mode.startswith("I")

    result = as_8_bit(processor, image)
    assert np.array_equal(result[..., 0], np.round(values / 257))
    if dtype == "uint16":
        assert np.array_equal(as_8_bit(processor, values), result)


def test_files_keep_their_depth_and_transparency(processor, tmp_path):
    """A path gives the same pixels as the opened image, for 16-bit gray and transparent files too."""
    deep = Image.fromarray(np.full((32, 32), 0x80FF, dtype=np.uint16))
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    for name, image in {"deep.png": deep, "clear.png": clear}.items():
        image.save(tmp_path / name)
        assert np.array_equal(as_8_bit(processor, str(tmp_path / name)), as_8_bit(processor, image))


def test_photographs_are_turned_upright(processor, tmp_path):
    """The EXIF orientation is applied."""
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)

    result = as_8_bit(processor, Image.open(tmp_path / "turned.png"))
    assert (result[:, 16:] == 255).all() and (result[:, :16] == 0).all()


def test_arrays_and_tensors_in_every_layout(processor, pixels):
    """Channels first or last, 8-bit or in [0, 1], NumPy or torch with a gradient: the same pixels."""
    unit = pixels.astype(np.float32) / 255
    first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    tensor = torch.from_numpy(unit).permute(2, 0, 1).requires_grad_()
    for image in (
        pixels,
        first,
        pixels.astype(np.int64),
        unit,
        unit.astype(np.float64),
        torch.from_numpy(first),
        tensor,
    ):
        assert np.array_equal(as_8_bit(processor, image), pixels)


def test_floats_beyond_the_unit_range_are_refused(processor, pixels):
    """Floating-point images outside [0, 1] are ambiguous, so they raise instead of turning black."""
    with pytest.raises(ValueError, match=r"must hold values in \[0, 1\], got"):
        processor(pixels.astype(np.float32))


def test_gray_model(pixels):
    """With one channel colors become luminance and postprocess gives gray images."""
    processor = VQImageProcessor(image_size=32, num_channels=1)
    image = Image.fromarray(pixels)
    pixel_values = processor([image, pixels, image.convert("RGBA")], return_tensors="pt").pixel_values

    assert pixel_values.shape == (3, 1, 32, 32)
    for result in processor.postprocess(pixel_values):
        assert result.mode == "L"
        assert np.array_equal(np.asarray(result), np.asarray(image.convert("L")))


def test_settings_survive_saving(tmp_path, pixels):
    """A saved processor gives the same pixels when it is loaded."""
    processor = VQImageProcessor(image_size=16, num_channels=1, resample=Image.Resampling.BOX)
    processor.save_pretrained(tmp_path)
    loaded = VQImageProcessor.from_pretrained(tmp_path)

    assert loaded.to_dict() == processor.to_dict() | {"auto_map": loaded.auto_map}
    assert np.array_equal(as_8_bit(loaded, pixels), as_8_bit(processor, pixels))


def test_bad_arguments_are_refused(processor):
    """Unknown channel counts, sizes, output types and ranks raise with what is allowed."""
    with pytest.raises(ValueError, match=r"3 \(RGB\) or 1 \(gray\), got 4"):
        VQImageProcessor(num_channels=4)
    with pytest.raises(ValueError, match="`image_size` must be at least 1"):
        VQImageProcessor(image_size=0)
    with pytest.raises(ValueError, match='"pil", "np" or "pt"'):
        processor.postprocess(torch.zeros(1, 3, 4, 4), output_type="jpg")
    with pytest.raises(ValueError, match=r"shape \(batch, channels, height, width\)"):
        processor.postprocess(torch.zeros(3, 4, 4))
