"""Text in pictures: every script is printed, or replaced by something readable, and never a box."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from matplotlib import font_manager

from hf_vq.plots import labels
from hf_vq.plots.codebook import projection, usage_curves, usage_histogram
from hf_vq.plots.images import sample_sheet

# Last assigned in Unicode to no character, so that no font has it.
UNKNOWN = "\U000e0fff\u0378"
BOX_FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@pytest.fixture(autouse=True)
def only_the_fonts_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other machines may have fonts for everything; notes are told anew in each test."""
    entries = [each for each in font_manager.fontManager.ttflist if matplotlib.get_data_path() in each.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    forget()


def forget() -> None:
    """As in a new process."""
    for function in (labels._others, labels._font_of, labels._note):
        function.cache_clear()


def test_scripts_with_a_font_are_printed_as_they_are() -> None:
    """Also in decomposed form, and emoji that the font has."""
    names = ["cat", "Ko\u0308ter", "Кошка", "γάτα", "قطة", "חתול", "café ☕"]
    assert labels.printable(names) == names
    assert all(labels.width_of(name) > 10 for name in names)


def test_letters_without_a_font_become_readable(caplog: pytest.LogCaptureFixture) -> None:
    """What the caller says, or names of emoji and code points; one note tells what stands for what."""
    names = ["dog", "猫", "Hund 犬: groß", "🦩 bird", "한국"]
    with caplog.at_level(logging.WARNING):
        assert labels.printable(names, [f"class {number}" for number in range(5)]) == [
            "dog", "class 1", "class 2", "class 3", "class 4"
        ]  # fmt: skip
        assert labels.printable(names) == [
            "dog", "U+732B", "Hund U+72AC: groß", ":flamingo: bird", "U+D55C U+AD6D"
        ]  # fmt: skip
        labels.printable(names)
    assert len(caplog.records) == 2
    assert "class 1 is '猫', class 2 is" in caplog.text and "Install a font" in caplog.text


def test_an_installed_font_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A letter that only another font has is printed with that font, in pictures and in figures."""
    entry = next(each for each in font_manager.fontManager.ttflist if each.name == "STIXGeneral")
    theirs = sorted((labels._characters(entry.fname) or frozenset()) - labels._default().characters)
    length = labels._pil_font(entry.fname, 17).getlength
    letter = next(chr(code) for code in theirs if chr(code).isprintable() and length(chr(code)) > 5)
    assert labels.printable([letter]) != [letter]  # STIX is left out as a font of formulas
    path = tmp_path / "other.ttf"
    shutil.copy(entry.fname, path)
    forget()
    other = font_manager.FontEntry(fname=str(path), name="Other", style="normal", weight=400)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist, other])

    assert labels.printable([f"a{letter}"]) == [f"a{letter}"]
    assert labels.families(f"a{letter}") == ["DejaVu Sans", "Other"]
    expected = labels._pil_font(str(path), 17).getlength(letter)
    assert labels.width_of(letter) == expected > 0


def test_no_picture_has_a_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn with a glyph that the font lacks: neither by Pillow nor by matplotlib, which warns of these."""
    drawn: list[str] = []
    monkeypatch.setattr(PIL.ImageDraw.ImageDraw, "text", lambda self, place, text, **options: drawn.append(text))
    name = f"猫 Кошка 🦩 {UNKNOWN}"
    sample_sheet([PIL.Image.new("L", (8, 8))] * 2, row_labels=[name, "dog"], columns=1)
    characters = labels._default().characters
    assert "".join(drawn).count("Кошка") == 1 and all(ord(letter) in characters for letter in "".join(drawn))
    counts, cloud = torch.randint(0, 9, (16,)), torch.randn(16, 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph .* missing")
        usage_histogram({name: counts, "b": counts}, title=name)
        usage_curves({name: [(0, 1), (1, 2)]}, title=name)
        projection({name: cloud}, {name: cloud}, {name: counts}, title=name)


def test_long_names_stay_within_figures() -> None:
    """Legends, titles of panels and titles are wrapped: no ink at the left and right edges, none lost."""
    name = "runs/a-name-that-is-much-longer-than-a-figure-is-wide/" * 3
    counts, cloud = torch.randint(0, 9, (16,)), torch.randn(16, 4)
    pictures = [
        usage_histogram({name: counts, "b": counts}, title=name),
        usage_curves({name: [(0, 1), (1, 2)], "b": [(0, 1)]}),
        projection(*({name: each, "b": each} for each in (cloud, cloud, counts)), title=name),
    ]
    for picture in pictures:
        pixels = np.asarray(picture.convert("L"))
        assert (pixels[:, :4] > 250).all() and (pixels[:, -3:] > 250).all() and (pixels[:4] > 250).all()


@pytest.mark.parametrize("width", [40, 100, 240])
def test_wrapping_loses_nothing(width: int) -> None:
    """Every letter is there, in lines of that width."""
    text = "a path/to_some-thing.with words " + "x" * 60
    lines = labels.wrapped(text, width)

    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(labels.width_of(line) <= width for line in lines)
    assert labels.wrapped("", width) == [""]
