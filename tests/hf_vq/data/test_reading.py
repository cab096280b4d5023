"""Reading images: how they are decoded and preprocessed, and what becomes of those that cannot be read."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from hf_vq.data.images import ImageDataset
from hf_vq.data.reading import ImageReader, Preprocessor, convert_image, image_to_tensor, row_name, split_rows
from hf_vq.data.shards import ShardWriter, Views, image_key, read_shard_info
from hf_vq.data.sources import load_images
from hf_vq.data.tokens import token_features
from hf_vq.evaluation.images import ImageBatches
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.pixel_range_vq import UNIT

from ...tiny_tokens import PROCESSOR, tiny
from .pictures import encoded, noise

# ---- decoding


def test_wide_image_is_resized_by_its_shorter_edge_and_cropped_in_the_middle():
    """The result is Pillow's bicubic resize of the shorter edge, then the center, scaled to [-1, 1]."""
    image = noise(90, 50)

    resized = image.resize((int(20 * 90 / 50), 20), PIL.Image.Resampling.BICUBIC).crop((8, 0, 28, 20))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1).double() / 127.5 - 1
    pixel_values = image_to_tensor(image, 20)
    assert pixel_values.dtype == torch.float32 and pixel_values.is_contiguous()
    torch.testing.assert_close(pixel_values.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["I;16", "I", "I;16B", "F", "L", "RGBA", "LA", "P", "1", "CMYK"])
def test_every_mode_keeps_its_brightness(mode: str):
    """Half-bright images stay half-bright in every mode: 16 bits are scaled, white shines through alpha."""
    images = {
        "I;16": PIL.Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)),
        "I;16B": PIL.Image.frombytes("I;16B", (4, 4), np.full((4, 4), 128 * 257, ">u2").tobytes()),
        "I": PIL.Image.fromarray(np.full((4, 4), 128 * 257, np.int32)),
        "F": PIL.Image.fromarray(np.full((4, 4), 128 / 255, np.float32)),
        "RGBA": PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 127)),
        "LA": PIL.Image.new("LA", (4, 4), (0, 127)),
        "P": PIL.Image.new("RGB", (4, 4), (128, 128, 128)).convert("P", palette=PIL.Image.Palette.ADAPTIVE),
        "1": PIL.Image.new("1", (4, 4), 1),
        "CMYK": PIL.Image.new("CMYK", (4, 4), (127, 127, 127, 0)),
    }
    image = images.get(mode, PIL.Image.new("L", (4, 4), 128))
    assert image.mode == mode

    for channels in (1, 3):
        level = np.asarray(convert_image(image, channels)).mean()
        assert level == pytest.approx(255 if mode == "1" else 128, abs=1)


@pytest.mark.parametrize("pixel_range", [[-1.0, 1.0], [0.0, 1.0]])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_preprocessing_equals_the_image_processor(tmp_path: Path, num_channels: int, pixel_range: list[float]):
    """What the model is trained on is bit for bit what the published processor makes of the same file."""
    images = {
        "wide": noise(57, 40),
        "tall": noise(33, 71),
        "small": noise(9, 14),
        "alpha": noise(40, 35).convert("RGBA"),
        "gray": noise(31, 45).convert("L"),
        "deep": PIL.Image.fromarray(np.random.default_rng(0).integers(0, 65536, (41, 36), dtype=np.uint16)),
        "palette": noise(32, 32).convert("P"),
    }
    images["alpha"].putalpha(noise(40, 35, 1).convert("L"))
    processor = VQImageProcessor.for_config(
        VQConfig(image_size=32, num_channels=num_channels, pixel_range=pixel_range)
    )
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    images["keyed"] = PIL.Image.new("RGB", (32, 32), "red")  # one color of an RGB file is declared transparent
    images["keyed"].save(tmp_path / "keyed.png", transparency=(255, 0, 0))
    dataset = ImageDataset(load_images(str(tmp_path)), 32, num_channels=num_channels, pixel_range=pixel_range)

    for index, name in enumerate(sorted(images)):
        with PIL.Image.open(tmp_path / f"{name}.png") as image:
            expected = processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(dataset[index]["pixel_values"], expected), name


def test_transparent_palette_color_becomes_white():
    """A palette image whose background is transparent lies on white, not on the hidden color."""
    image = PIL.Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    buffer = io.BytesIO()
    image.save(buffer, "png", transparency=0)

    item = ImageDataset([{"image": {"bytes": buffer.getvalue(), "path": None}}], 4)[0]
    assert (item["pixel_values"] == 1).all()


def test_16_bit_png_file_is_not_clipped(tmp_path: Path):
    """A 16-bit gray file comes out with its full range, dark to bright."""
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    PIL.Image.fromarray(ramp).save(tmp_path / "ramp.png")

    pixel_values = ImageDataset(load_images(str(tmp_path)), 32)[0]["pixel_values"]
    expected = torch.from_numpy(ramp / 65535 * 2 - 1).float().expand(3, -1, -1)
    torch.testing.assert_close(pixel_values, expected, atol=1.01 / 255, rtol=0)


def test_exif_orientation_is_applied(tmp_path: Path):
    """A photograph stored on its side is turned upright."""
    image = PIL.Image.new("RGB", (20, 20), "black")
    image.paste("white", (0, 0, 20, 10))
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)

    pixel_values = ImageDataset(load_images(str(tmp_path)), 20)[0]["pixel_values"]
    assert (pixel_values[:, :10] == -1).all() and (pixel_values[:, 10:] == 1).all()


# ---- the reader


def test_every_row_becomes_an_example(folder: Path) -> None:
    """Whatever a row holds, its number, name, label and image come out, preprocessed on demand."""
    image = noise(40, 32)
    rows: dict[str, Any] = {
        str(folder / "cats/1.png"): str(folder / "cats/1.png"),
        "a.png (row 1)": {"image": {"path": "a.png", "bytes": encoded(image)}, "label": 3},
        "row 2": image,
        "row 3": encoded(image),
        "row 4": np.asarray(image),
    }
    reader = ImageReader(3, lambda image, index: (index, image.size))

    for index, (name, row) in enumerate(rows.items()):
        label = 3 if index == 1 else None
        assert reader.read(index, row) == (index, name, label, (index, (40, 32)), "")
    assert ImageReader(1).read(0, image).content.mode == "L"


def test_an_unreadable_image_is_an_example_with_a_reason(damaged: Path) -> None:
    """The reason names what is wrong, not where somebody's files are; preprocessing may refuse an image, too."""

    def refuse(image: PIL.Image.Image, index: int) -> None:
        raise ArithmeticError

    bad = ImageReader().read(7, str(damaged / "cats/5.png"))
    assert bad == (7, str(damaged / "cats/5.png"), None, None, "cannot identify image file '5.png'")
    assert ImageReader().read(0, {"image": {"bytes": b"x", "path": None}}).reason == "cannot identify image file"
    assert ImageReader().read(0, {"image": None}).reason == "the row holds no image"
    assert ImageReader(3, refuse).read(0, noise(8, 8)).reason == "ArithmeticError"


def test_strict_raises_the_reason_with_its_cause(damaged: Path) -> None:
    """Under `strict` the error says the name, the reason and the way out, and keeps Pillow's error."""
    reader = ImageReader(name=lambda row, index: f"number {index}", strict=True)

    with pytest.raises(
        ValueError, match=r"^cannot read number 2 \(cannot identify.*\)\. Repair .* drop strict$"
    ) as error:
        reader.read(2, str(damaged / "cats/5.png"))
    assert isinstance(error.value.__cause__, PIL.UnidentifiedImageError)
    assert reader.read(0, str(damaged / "cats/1.png")).content is not None


def test_rows_are_read_ahead_in_order_and_no_further() -> None:
    """Threads that finish in any order change nothing, and what waits for its turn is bounded."""
    first_waits = threading.Event()
    taken = 0

    def rows() -> Any:
        nonlocal taken
        for index in range(20):
            taken += 1
            yield index, noise(4, 4, index)

    def preprocess(image: PIL.Image.Image, index: int) -> int:
        if index == 0:
            assert first_waits.wait(10)
        if index == 3:
            first_waits.set()
        return index

    with ThreadPoolExecutor(4) as executor:
        seen = []
        for example in ImageReader(3, preprocess).read_ahead(rows(), executor, 3):
            seen.append(example.content)
            assert taken == min(20, len(seen) + 3)
    assert seen == list(range(20))


def test_read_ahead_raises_at_the_unreadable_row() -> None:
    """Under `strict` the rows before the unreadable one still come, although threads were ahead of it."""
    rows = [(index, noise(4, 4) if index != 2 else b"x") for index in range(6)]
    seen = []

    with ThreadPoolExecutor(4) as executor, pytest.raises(ValueError, match="cannot read row 2 "):
        for example in ImageReader(strict=True).read_ahead(rows, executor, 4):
            seen.append(example.number)
    assert seen == [0, 1]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_cut_into_parts_by_their_numbers(folder: Path, streaming: bool) -> None:
    """Parts that nobody iterates are passed over, and the numbers of rows go on."""
    parts = split_rows(load_images(str(folder), streaming=streaming), 4)

    found = {number: [(i, Path(row["image"]["path"]).name) for i, row in rows] for number, rows in parts if number}
    assert found == {1: [(4, "2.png"), (5, "4.png")]}


def test_keys_are_paths_below_the_folder_or_numbered_names() -> None:
    """Keys of token data sets stay what they were; messages name whole paths."""
    row = {"image": {"path": "/photos/cats/1.png", "bytes": None}}

    assert image_key(row, 5, Path("/photos")) == "cats/1.png"
    assert image_key(row, 5, Path("/other")) == image_key(row, 5) == "000000005-1.png"
    assert image_key({"image": {"path": None, "bytes": b""}}, 5, Path("/photos")) == "000000005"
    assert row_name(row, 5) == "/photos/cats/1.png"


def test_training_tokenizing_and_evaluation_read_alike(damaged: Path, tmp_path: Path) -> None:
    """All three give the same pixels, and pass over the same images for the same reasons."""
    source = load_images(str(damaged))
    dataset = ImageDataset(source, 16)
    dataset.find_bad_images()
    good = torch.stack([dataset[index]["pixel_values"] for index in (0, 3, 4, 5)])

    batches = ImageBatches(source, PROCESSOR)
    assert torch.equal(torch.cat([batch.pixel_values for batch in batches]), good)
    assert batches.skipped == dataset.bad_images and len(batches.skipped) == 2

    seen: list[torch.Tensor] = []
    with ThreadPoolExecutor(2) as executor:
        model = tiny()
        num_tokens = model.encode(good).image_tokens[0].numel()
        features = token_features(num_tokens, model.config.num_codes)
        writer = ShardWriter(model, PROCESSOR, Views(), features, "", executor, root=damaged)
        encode = writer._encode
        writer._encode = lambda pixel_values: seen.extend(pixel_values) or encode(pixel_values)  # type: ignore
        writer.write(tmp_path / "shard.parquet", enumerate(source))
    assert torch.equal(torch.stack(seen), good)
    skipped = {
        str(damaged / key): reason for key, reason in read_shard_info(tmp_path / "shard.parquet").skipped.items()
    }
    assert skipped == dataset.bad_images


def whole_strip(image: PIL.Image.Image, size: int, position: tuple[float, float] | None) -> torch.Tensor:
    """The pixels by the long way: the whole image is resized, then the square is cut out."""
    width, height = image.size
    short = min(width, height)
    image = image.resize((size * width // short, size * height // short), PIL.Image.Resampling.BICUBIC)
    places = position or (0.5, 0.5)
    spares = (image.height - size, image.width - size)
    top, left = (
        spare // 2 if position is None else int(p * (spare + 1)) for p, spare in zip(places, spares, strict=True)
    )
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + size, top + size))))
    return pixels.permute(2, 0, 1)


@pytest.mark.parametrize("position", [None, (0.0, 0.0), (0.37, 0.73), (0.9999, 0.9999)])
@pytest.mark.parametrize("size", [(400, 1), (401, 2), (1, 333), (7, 500), (3000, 50), (2001, 100), (640, 16)])
def test_thin_images_become_the_pixels_of_the_whole_strip(size: tuple[int, int], position: Any):
    """What is cut off before resizing does not show: pixels are those of the whole strip, but for its roundings."""
    image, side = noise(*size), 16
    expected = whole_strip(image, side, position)

    found = (image_to_tensor(image, side, position=position, pixel_range=UNIT) * 255).round()
    exact = side * max(size) % min(size) == 0
    assert (found - expected).abs().max() <= (1 if exact else 40)
    if position is None:
        processor = VQImageProcessor(image_size=side, do_normalize=False)
        theirs = (processor(image, return_tensors="pt").pixel_values[0] * 255).round()
        assert (theirs - expected).abs().max() <= (1 if exact else 40)


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (90000, 3), (20_000_000, 1)])
def test_memory_of_a_thin_image_is_bounded_by_its_output(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    """No image in between has more than some tens of times the pixels of the result."""
    image, largest = PIL.Image.new("L", size, 128), 0
    resize = PIL.Image.Image.resize

    def measured(self: PIL.Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> PIL.Image.Image:
        nonlocal largest
        largest = max(largest, size[0] * size[1])
        assert largest <= 64 * 64 * 64
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(PIL.Image.Image, "resize", measured)
    processor = VQImageProcessor(image_size=64, num_channels=1)
    assert processor(image, return_tensors="pt").pixel_values.shape == (1, 1, 64, 64)
    for position in (None, (0.0, 0.0), (0.5, 0.5), (0.9999, 0.9999)):
        assert image_to_tensor(image, 64, position=position).shape == (1, 64, 64)
    assert largest >= 64 * 64


def test_preprocessor_refuses_what_it_cannot_make() -> None:
    """Sizes, ranges and numbers of channels that there are not."""
    with pytest.raises(ValueError, match="image_size must be positive, got 0"):
        Preprocessor(0)
    with pytest.raises(ValueError, match="pixel_range"):
        Preprocessor(8, (0.0, 255.0))
    with pytest.raises(ValueError, match="num_channels must be 1 or 3, got 4"):
        ImageReader(4)
