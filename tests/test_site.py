"""The site's reference has what the package offers and what the guides use, and each of these has a docstring."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import hf_vq
from hf_vq.modeling.configuration_quantizer_vq import QuantizerConfig

from .pages import Page

DOCS = Path(__file__).parents[1] / "docs"
SHOWN = [path for page in DOCS.glob("reference/*.md") for path in re.findall(r"^::: (\S+)", page.read_text(), re.M)]
GUIDES = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
IMPORT = re.compile(r"^from (hf_vq[\w.]*) import (\([^)]+|.+)", re.MULTILINE)


def found(path: str) -> Any:
    """The module, class or function of a dotted name."""
    module, _, name = path.rpartition(".")
    return importlib.import_module(path) if path == "hf_vq.losses" else getattr(importlib.import_module(module), name)


def is_shown(value: Any) -> bool:
    """Whether a page shows this object, under whatever name."""
    return any(found(path) is value for path in SHOWN)


@pytest.mark.parametrize("name", sorted(set(hf_vq.__all__) - {"__version__", "RECOMMENDED_QUANTIZER"}))
def test_every_public_name_is_in_the_reference(name: str) -> None:
    """Classes and functions of the package's front."""
    assert is_shown(getattr(hf_vq, name))


def test_the_base_of_all_configurations_is_in_the_reference() -> None:
    """It documents the fields of quantizers that the configurations of the models inherit."""
    assert is_shown(QuantizerConfig)


def test_what_guides_import_is_in_the_reference() -> None:
    """Whatever a reader of the guides or of the README has to look up."""
    imports = [found for page in GUIDES for found in IMPORT.findall(page.read_text())]
    names = {f"{module}.{name}" for module, names in imports for name in re.findall(r"\w+", names)}

    assert {"hf_vq.VectorQuant", "hf_vq.data.load_images"} <= names
    missing = {name for name in names if callable(found(name)) and not is_shown(found(name))}
    assert not missing


def test_what_the_reference_shows_exists_once_and_has_a_docstring() -> None:
    """Each entry resolves, and no class is on two pages."""
    objects = [found(path) for path in SHOWN]

    assert len(SHOWN) > 60
    assert all(inspect.getdoc(each) for each in objects)
    assert len({id(each) for each in objects}) == len(objects)


def test_the_first_page_prints_what_it_says() -> None:
    """The layer that a reader meets first."""
    page = Page("index.md")
    (block,) = page.code()
    page.assert_prints(block)


def test_what_the_page_on_the_method_quotes_was_measured() -> None:
    """Each of its numbers with two places stands on the page of results, but those that are arguments."""
    page = re.sub(r"`[^`]*`", "", Page("method.md").text)
    results = Page("results.md").text
    quoted = set(re.findall(r"\d+\.\d\d(?: ± \d+\.\d\d)?", page))

    assert len(quoted) >= 10
    assert not {number for number in quoted if number not in results}


def test_the_notebook_was_saved_after_it_ran() -> None:
    """Each cell that ends in a picture shows one, and none shows an error."""
    cells = [
        cell for cell in json.loads((DOCS / "quickstart.ipynb").read_text())["cells"] if cell["cell_type"] == "code"
    ]
    pictures = [cell for cell in cells if "".join(cell["source"]).rstrip().splitlines()[-1].startswith("sheet(")]

    assert len(pictures) == 5
    assert all(any("image/png" in output.get("data", {}) for output in cell["outputs"]) for cell in pictures)
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
