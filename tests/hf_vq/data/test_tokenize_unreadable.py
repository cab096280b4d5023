"""Images that cannot be tokenized are skipped and named, or stop the run."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from hf_vq import VQImageProcessor, load_token_dataset
from hf_vq.data.tokenize import tokenize_dataset

from ...tiny_tokens import arguments, contents, picture, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def test_unreadable_images_are_skipped_and_named(
    images: Path, tokenizer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are counted and named in the manifest, without the path to them; the other rows are there."""
    (images / "cats" / "01.png").write_text("not an image")
    with caplog.at_level(logging.WARNING):
        manifest = tokenize_dataset(arguments(tokenizer, images, tmp_path / "tokens"))

    record = manifest["splits"]["train"]
    assert (record["num_images"], record["num_rows"], record["num_skipped"]) == (11, 10, 1)
    assert list(record["skipped"]) == ["cats/01.png"]
    assert str(tmp_path) not in (tmp_path / "tokens" / "manifest.json").read_text()
    assert "skipped 1 of 11 images that cannot be read: cats/01.png" in caplog.text
    assert len(load_token_dataset(tmp_path / "tokens")) == 10


def test_strict_stops_at_an_unreadable_image(images: Path, tokenizer: str, tmp_path: Path) -> None:
    """Also where an earlier run without it has skipped the image; and a strict run goes on without strict."""
    (images / "dogs" / "09.png").write_text("not an image")
    args = arguments(tokenizer, images, tmp_path / "tokens")
    strict = dataclasses.replace(args, strict=True)

    for run in (strict, args, strict):
        if run.strict:
            with pytest.raises(ValueError, match="cannot read dogs/09.png"):
                tokenize_dataset(run)
        else:
            tokenize_dataset(run)
    tokenize_dataset(arguments(tokenizer, images, tmp_path / "fresh"))
    assert contents(tmp_path / "tokens") == contents(tmp_path / "fresh")


def test_images_that_the_processor_refuses_are_skipped_and_named(images: Path, tmp_path: Path) -> None:
    """One that can be read but not preprocessed, here for its size, is no end of the run; under strict it is named."""
    tiny().save_pretrained(tmp_path / "tokenizer")
    VQImageProcessor(image_size=16, do_resize=False).save_pretrained(tmp_path / "tokenizer")
    picture(0, (8, 8)).save(images / "cats" / "01.png")
    args = arguments(str(tmp_path / "tokenizer"), images, tmp_path / "tokens")

    with pytest.raises(ValueError, match="cannot read cats/01.png .*8"):
        tokenize_dataset(dataclasses.replace(args, strict=True))
    record = tokenize_dataset(args)["splits"]["train"]
    assert (record["num_rows"], list(record["skipped"])) == (10, ["cats/01.png"])


def test_nothing_readable_is_an_error(tokenizer: str, tmp_path: Path) -> None:
    """A data set without one good image ends with the reasons, and is not taken for finished."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("not an image")

    with pytest.raises(ValueError, match="cannot read a.png"):
        tokenize_dataset(arguments(tokenizer, tmp_path / "images", tmp_path / "tokens"))
    with pytest.raises(ValueError, match="'train' of .* is not finished"):
        load_token_dataset(tmp_path / "tokens")
