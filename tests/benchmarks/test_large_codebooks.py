"""The benchmark of large codebooks: its splits of photographs, its fast search, its tables and picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq.modeling.modeling_vq import VQModel


@pytest.fixture
def large(benchmark: Callable):
    return benchmark("large_codebooks")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photographs of 480 x 48 px in which the red value tells the column's half, and blue the photograph."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 480, 3), dtype=np.uint8)
        pixels[..., 0], pixels[..., 2] = np.arange(480) // 2, number
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_no_pixel_of_the_held_out_strips_or_of_other_photographs_trains(large, photos: Path) -> None:
    tiles = large.module.images("table", 256, photos)

    def seen(split: str) -> set[tuple[int, int]]:
        pixels = ((tiles[split] + 1) * 127.5).round().int()
        return set(zip(pixels[:, 2].flatten().tolist(), pixels[:, 0].flatten().tolist(), strict=True))

    train, strips, others = (seen(split) for split in ("train", "strips", "photographs"))
    assert {number for number, _ in train} == {number for number, _ in strips} == {1, 2}
    assert {number for number, _ in others} == {0, 3}
    assert not train & strips
    # Every fifth strip of 64 px, from the third on, is held out: columns 128 to 191 and 448 to 479, all of them seen.
    assert {half for _, half in strips} == {*range(64, 96), *range(224, 240)}
    assert len(tiles["strips"]) == 2 * (33 + 1) * 17


def test_the_count_of_held_out_tiles_is_kept(large, photos: Path) -> None:
    names = tuple(str(path) for path in sorted(photos.iterdir()))
    assert len(large.module.strips(names, 1, held_out=True, count=10)) == 10


def test_the_tree_finds_the_tokens_that_the_layer_finds(large) -> None:
    model: VQModel = large.module.build(large.module.Row({}, 4), 256, 0).eval()
    pictures = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        layer: Any = model.quantize
        layer.codebook.weight.copy_(model.encode(pictures).last_hidden_state.movedim(1, -1).flatten(0, -2)[::2])
        slow = model.encode(pictures).image_tokens
        large.module.use_fast_search(model)
        fast = model.encode(pictures).image_tokens

    assert torch.equal(slow, fast) and len(slow.unique()) > 200
    assert large.module.usage(model, pictures, 256) == len(slow.unique()) / 256


def test_a_run_writes_a_table_and_a_picture_and_goes_on(large, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large.module, "MAX_STRIP_TILES", 64)
    monkeypatch.setattr(large.module, "MAX_YARDSTICK", 0)
    words = ("--photos", str(photos), "--sizes", "256", "--steps", "2", "--rows", "full method", "no quantization")
    large(*words)

    written = large.written("large_codebooks_photos")
    full, floor = written["records"]
    assert (full["row"], floor["row"]) == ("full method, 4-d", "no quantization")
    assert 0 < full["usage"] <= 1 and 0 < full["strips_usage"] <= 1 and "strips_usage" not in floor
    assert written["protocol"]["data"]["table"] == {"train": ["1.png", "2.png"], "test": ["0.png", "3.png"]}
    text = (large.results / "large_codebooks_photos.md").read_text()
    assert "4 photographs, two thirds for training; 2 steps of batch 32" in text
    assert f"| 256 | full method, 4-d | {1e3 * full['mse']:.2f} |" in text
    assert f"| 256 | no quantization | {1e3 * floor['mse']:.2f} | {1e3 * floor['strips_mse']:.2f} |  |" in text
    with Image.open(large.results / "large_codebooks_photos.png") as picture:
        assert picture.width > 600

    monkeypatch.setattr(large.module, "run", lambda *_: pytest.fail("ran again"))
    large(*words)
    assert large.written("large_codebooks_photos") == written


@pytest.mark.parametrize(("num_codes", "batches"), [(16384, 80), (65536, 320)])
def test_later_replacement_waits_for_ten_vectors_a_code(large, num_codes: int, batches: int) -> None:
    row = large.module.table(num_codes)["full method, 4-d, later k-means replacement"]
    assert row.quantizer == {"replace_freq": batches, "replace_policy": "kmeans"}
