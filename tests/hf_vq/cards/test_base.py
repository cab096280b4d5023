"""The one template: a kind of card fills slots, and a quantizer says what it is in its own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from hf_vq import VectorQuant, VQConfig
from hf_vq.cards.base import Facts, Metric, Slots, card
from hf_vq.cards.citations import CITATIONS, paper_links
from hf_vq.cards.files import RESULTS_FILE, save_card
from hf_vq.cards.tokenizer import tokenizer_card
from hf_vq.modeling import quantizers_vq
from hf_vq.modeling.checks_quantizer_vq import REGISTERED_TYPES
from hf_vq.utils.text import public_name

HEADINGS = ["## Use", "## Model", "## Training", "## Evaluation", "## Limits", "## Citation"]


@card
def toy_card(config: Any, facts: Facts, trained_on: str) -> Slots:
    """Two metrics, one of them with a note and a count."""
    return Slots(
        title="Toy",
        tags=("toy",),
        opening=f"A toy of {config}.",
        code="print(1)",
        model={"weight": 0.5, "color": None, "parts": 12345},
        recipe={"loss": "none"},
        metrics={
            "speed": Metric("speed", "Speed", "{:.1f}", images="num_laps"),
            "height": Metric("height", "Height", "{:.2f}", counted="num_floors", note="Of the tower."),
        },
        note="Measured twice.",
        limits=[f"It is small{trained_on}."],
        works=["oord", "oord", "@misc{toy}"],
    )


def test_a_kind_of_card_only_fills_slots() -> None:
    """Sections, tables, metadata, license and citations come from the template, in one order."""
    text = str(
        toy_card("wood", {"speed": 1.25, "num_laps": 3, "height": 2.0, "num_floors": 7, "num_images": 9, "x": 1},
                 "/home/me/shelf", "test", {"loss": "wear", "age": 3}, license="mit", versions={"torch": "2"})
    )  # fmt: skip

    places = [text.index(f"{heading}\n") for heading in HEADINGS]
    assert places == sorted(places) and "A toy of wood." in text and "# Toy\n" in text
    assert "| weight | 0.5 |\n| parts | 12,345 |\n" in text and "color" not in text
    assert "| data set | shelf |\n| loss | wear |\n| age | 3 |\n| trained with | torch 2 |\n" in text
    assert "| Speed | 1.2 | shelf | test | 3 |\n| Height | 2.00 (7) | shelf | test | 9 |\n" in text
    assert "Measured twice. Of the tower." in text and "It is small (`shelf`)." in text and "/home" not in text
    assert text.index("## Limits") < text.index("## License\n\nmit") < text.index("## Citation")
    assert text.count("oord2017neural") == 1 and "@misc{toy}" in text


def test_notes_belong_to_what_was_measured() -> None:
    """Without the metric there is none, and without any metric no table."""
    assert "Of the tower." not in str(toy_card("wood", {"speed": 1.0, "height": float("nan")}))
    assert "Not measured." in str(toy_card("wood", {"height": float("nan")}))


def test_a_quantizer_kind_brings_its_words_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that is registered is described and cited without an edit of any card."""

    class Lattice(VectorQuant):
        """A kind of somebody's own."""

        @classmethod
        def card_words(cls, config: Any) -> str:
            return f"a lattice of {config.num_codes} points"

        @classmethod
        def cited_works(cls, config: Any) -> list[str]:
            return ["@misc{lattice}"]

    monkeypatch.setitem(quantizers_vq.QUANTIZERS, "lattice", Lattice)
    monkeypatch.setattr("hf_vq.modeling.configuration_quantizer_vq.REGISTERED_TYPES", [*REGISTERED_TYPES, "lattice"])
    text = str(tokenizer_card(VQConfig(quantizer_type="lattice", num_codes=64), {}))

    assert "| quantizer | a lattice of 64 points |" in text and "@misc{lattice}" in text
    assert "oord2017neural" not in text and "esser2021taming" in text


def test_papers_are_linked_where_the_hub_finds_them() -> None:
    """Every work on arXiv is a link outside of the BibTeX, also one of somebody's own; others have none."""
    own = "@article{own,\n  title = {A {Lattice} of One's Own},\n  journal = {arXiv preprint arXiv:2601.01234},\n}"
    links = paper_links([*CITATIONS.values(), own, "@misc{none, title = {No number}}"])

    assert links[-1] == "[A Lattice of One's Own](https://arxiv.org/abs/2601.01234)"
    assert "[Neural Discrete Representation Learning](https://arxiv.org/abs/1711.00937)" in links
    assert len(links) == len(CITATIONS) - 1  # k-means++ and NSVQ are not on arXiv
    card = str(tokenizer_card(VQConfig(), {}))
    assert "\nPapers: [" in card and "](https://arxiv.org/abs/2305.08842)" in card


def test_a_run_names_its_model() -> None:
    """Without a repository the title is the run's name, not that of the folder "final"."""
    assert ModelCard(str(tokenizer_card(VQConfig(), {}, name="emoji-vq"))).text.lstrip().startswith("# emoji-vq\n")
    assert public_name("runs/emoji-vq/final") == "emoji-vq" == public_name("/somewhere/emoji-vq/final/")


def test_results_are_written_for_the_hub(tmp_path: Path) -> None:
    """Numbers of a data set on the Hub are entries that its client reads; those of a folder are none."""
    save_card(tokenizer_card(VQConfig(), {"psnr": 21.5, "num_images": 9}, "alice/dots", "test"), tmp_path)
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / RESULTS_FILE).read_text()))

    assert (entry.dataset_id, entry.task_id, entry.value) == ("alice/dots", "psnr", 21.5)
    assert "split test" in str(entry.notes) and "num images 9" in str(entry.notes)
    save_card(tokenizer_card(VQConfig(), {"psnr": 21.5}, "/home/me/dots", "test"), tmp_path)
    assert not (tmp_path / RESULTS_FILE).exists()
