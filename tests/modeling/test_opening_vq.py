"""Opening images: broken metadata make none unreadable, and only very large JPEGs are reduced."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq.data.reading import ImageReader, image_to_tensor
from hf_vq.modeling import opening_vq
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.opening_vq import open_image, upright


def chunk(kind: bytes, content: bytes, broken: bool = False) -> bytes:
    """A chunk of a PNG, with a wrong checksum if it is `broken`."""
    checksum = zlib.crc32(kind + content) ^ broken
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(*chunks: bytes, behind: bool = False, mode: str = "RGB") -> bytes:
    """A PNG of 20 x 16 pixels with more chunks before its pixels or behind them."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, "png")
    whole = buffer.getvalue()
    place = len(whole) - 12 if behind else 8 + 25
    return whole[:place] + b"".join(chunks) + whole[place:]


LONG = zlib.compress(bytes(3_000_000))
BROKEN = {
    "exif of nothing": chunk(b"eXIf", b""),
    "exif of noise": chunk(b"eXIf", b"this is no TIFF header"),
    "exif cut off": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x09\x01"),
    "exif checksum": chunk(b"eXIf", b"MM\0*", broken=True),
    "compressed text": chunk(b"zTXt", b"Comment\0\0" + LONG),
    "international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG),
    "much text": b"".join(chunk(b"tEXt", b"k%d\0" % n + bytes(900_000)) for n in range(80)),
    "profile": chunk(b"iCCP", b"name\0\0" + LONG),
    "text checksum": chunk(b"tEXt", b"a\0b", broken=True),
    "raw profile": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n    4\nzz"),
    "size": chunk(b"pHYs", b"1"),
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_metadata_make_no_png_unreadable(tmp_path, name, behind):
    """Training and the processor read its pixels, from bytes, from a path and as a Pillow image."""
    (tmp_path / "a.png").write_bytes(png(BROKEN[name], behind=behind))
    processor = VQImageProcessor(image_size=16)
    expected = processor(Image.open(io.BytesIO(png())), return_tensors="pt").pixel_values

    assert torch.equal(processor(str(tmp_path / "a.png"), return_tensors="pt").pixel_values, expected)
    for value in ({"path": str(tmp_path / "a.png"), "bytes": None}, (tmp_path / "a.png").read_bytes()):
        example = ImageReader(preprocess=lambda image, _: image_to_tensor(image, 16)).read(0, value)
        assert example.reason == "" and torch.equal(example.content, expected[0])
    if name.startswith("exif") and "checksum" not in name or behind and "text" in name and "checksum" not in name:
        with Image.open(tmp_path / "a.png") as image:
            assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)


def test_a_good_orientation_beside_broken_text_counts():
    """Only what is broken is left out."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + BROKEN["compressed text"]

    assert open_image(png(content)).size == (20, 16)
    assert upright(open_image(png(content))).size == (16, 20)
    assert ImageReader().read(0, png(content)).content.size == (16, 20)


def test_broken_pixels_stay_unreadable():
    """A file that is cut off is no broken metadata, and the first error is the one that is told."""
    whole = png(BROKEN["text checksum"])
    for length in (60, 400, len(whole) - 100):
        with pytest.raises((OSError, SyntaxError)):
            open_image(png()[:length])
    with pytest.raises(OSError, match="cannot identify"):
        open_image(b"not an image")


@pytest.mark.parametrize(("size", "factor"), [((900, 700), 4), ((500, 450), 2), ((330, 500), 1), ((240, 200), 1)])
def test_large_jpegs_are_reduced_and_others_are_not(monkeypatch, size, factor):
    """Beyond the limit a JPEG keeps enough pixels along its shorter edge; its colors stay close."""
    monkeypatch.setattr(opening_vq, "_LARGE", 100 * 1000)
    monkeypatch.setattr(opening_vq, "_SHORTEST", 170)
    ramp = np.linspace(0, 255, size[0] * size[1], dtype=np.uint8).reshape(size[1], size[0])
    buffer = io.BytesIO()
    Image.fromarray(ramp).convert("RGB").save(buffer, "jpeg", quality=95)

    found = open_image(buffer.getvalue())
    assert found.size == tuple(-(-edge // factor) for edge in size) and found.mode == "RGB"
    with Image.open(buffer) as whole:
        if factor == 1:
            assert np.array_equal(np.asarray(found), np.asarray(whole))
        reduced = (np.asarray(image.resize((64, 64)), dtype=int) for image in (found, whole))
        assert np.abs(next(reduced) - next(reduced)).max() <= 4
