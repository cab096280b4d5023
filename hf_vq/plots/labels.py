"""Text in pictures: of any script that an installed font has, wrapped and never cut off.

Letters that no installed font has would be boxes. A label with such letters is replaced by something readable, and a
note says once what it stands for.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import PIL.ImageDraw
import PIL.ImageFont

logger = logging.getLogger(__name__)

SIZE = 17  # pixels of the font
MAX_LENGTH = 300  # characters of a label; more is no name
_LINE = 1.25  # height of a line, in sizes of the font
# Fonts that have a box for every character, keep formulas' glyphs in places of their own, or have colored bitmaps.
_NO_TEXT = re.compile(r"last ?resort|^cm|^STIX|color|bitmap", re.IGNORECASE)


class Font(NamedTuple):
    """An installed font: its family's name, its file, and the characters that it has."""

    family: str
    path: str
    characters: frozenset[int]


def printable(labels: Sequence[str], instead: Sequence[str] | None = None) -> list[str]:
    """Labels without the letters that no installed font has.

    Args:
        labels: Any text.
        instead: What to print in place of each label that cannot be printed, such as the number of a class. Without
            it, an emoji becomes its name and any other such letter its code point, as in "U+732B".
    """
    printed, replaced = [], []
    for number, label in enumerate(labels):
        label = " ".join(label.split())
        label = label if len(label) <= MAX_LENGTH else label[: MAX_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"
        if all(font is not None for font, _ in _runs(label)):
            printed.append(label)
            continue
        printed.append(_spelled(label) if instead is None else instead[number])
        replaced.append(f"{printed[-1]} is {label!r}")
    if replaced:
        _note(tuple(replaced))
    return printed


def width_of(text: str, size: float = SIZE) -> float:
    """Pixels of a line of text."""
    return sum(_pil_font(font.path, size).getlength(part) for font, part in _runs(text) if font is not None)


def wrapped(text: str, width: float, size: float = SIZE) -> list[str]:
    """The lines of a text that is wrapped to a width in pixels: after spaces and slashes, else within words."""
    lines = [""]
    for piece in re.split(r"(?<=[\s/_.:-])", text):
        if lines[-1] and width_of((lines[-1] + piece).rstrip(), size) > width:
            lines.append("")
        for character in piece if width_of(piece.rstrip(), size) > width else [piece]:
            if lines[-1] and width_of((lines[-1] + character).rstrip(), size) > width:
                lines.append("")
            lines[-1] += character
    return [line.strip() for line in lines if line.strip()] or [""]


def height_of(lines: Sequence[str], size: float = SIZE) -> int:
    """Pixels of lines of text."""
    return round(len(lines) * _LINE * size)


def draw_left_of(
    draw: PIL.ImageDraw.ImageDraw, right: int, middle: int, lines: Sequence[str], color: str, size: float = SIZE
) -> None:
    """Draws lines that end at `right`, with their middle at the height `middle`."""
    top = middle - height_of(lines, size) / 2
    for number, line in enumerate(lines):
        left, baseline = right - width_of(line, size), top + number * _LINE * size + size
        for font, part in _runs(line):
            if font is not None:
                drawn = _pil_font(font.path, size)
                draw.text((left, baseline), part, fill=color, font=drawn, anchor="ls")
                left += drawn.getlength(part)


def families(text: str) -> list[str]:
    """The names of the font families that a text needs, for matplotlib."""
    return list(dict.fromkeys(font.family for font, _ in _runs(text) if font is not None))


def _runs(text: str) -> list[tuple[Font | None, str]]:
    """Parts of a text, each with the first font that has all of it; None where there is none."""
    return [
        (font, "".join(part))
        for font, part in groupby((c for c in text if not _is_joiner(c)), key=lambda character: _font_of(character))
    ]


def _is_joiner(character: str) -> bool:
    """Whether a character only says how its neighbors look, such as a variation selector."""
    return "\ufe00" <= character <= "\ufe0f" or character in "\u200b\u200d\u2060\ufeff"


@cache
def _font_of(character: str) -> Font | None:
    code, default = ord(character), _default()
    return default if code in default.characters else next((f for f in _others() if code in f.characters), None)


@cache
def _default() -> Font:
    import matplotlib

    path = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    return Font("DejaVu Sans", path, _characters(path) or frozenset())


@cache
def _others() -> list[Font]:
    """The other fonts of this machine, those of ordinary weight first."""
    from matplotlib.font_manager import fontManager

    entries = {
        entry.fname: entry
        for entry in fontManager.ttflist
        if entry.style == "normal" and not _NO_TEXT.search(entry.name)
    }
    ordered = sorted(entries.values(), key=lambda entry: (_boldness(entry.weight), entry.name, entry.fname))
    found = [(entry, _characters(entry.fname)) for entry in ordered]
    return [Font(entry.name, entry.fname, characters) for entry, characters in found if characters]


def _boldness(weight: int | str) -> int:
    return abs(int(weight) - 400) if str(weight).isdigit() else 0 if weight in ("normal", "regular", "book") else 300


def _characters(path: str) -> frozenset[int] | None:
    """The characters of a font; None if it has no outlines or cannot be opened."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        _pil_font(path, SIZE)
        return frozenset(font.get_charmap()) if font.scalable else None
    except (OSError, RuntimeError, ValueError):
        return None


@cache
def _pil_font(path: str, size: float) -> PIL.ImageFont.FreeTypeFont:
    return PIL.ImageFont.truetype(path, size)


def _spelled(label: str) -> str:
    words = []
    for font, part in _runs(label):
        words += [part] if font is not None else [_spelled_character(character) for character in part]
    return re.sub(r" (?=[:,.;!?)] )", "", " ".join(" ".join(words).split()))


def _spelled_character(character: str) -> str:
    name = unicodedata.name(character, "").lower()
    return f":{name}:" if name and unicodedata.category(character) == "So" else f"U+{ord(character):04X}"


@cache
def _note(replaced: tuple[str, ...]) -> None:
    """Says once what was printed in place of what."""
    logger.warning(
        "No installed font has all letters of some labels. In the picture %s. Install a font that has them, such as "
        "Noto Sans CJK, and delete matplotlib's list of fonts (`matplotlib.get_cachedir()`).",
        ", ".join(replaced),
    )
