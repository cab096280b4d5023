"""Cards that exist and cards that are generated become one, and each side keeps what is its own."""

from __future__ import annotations

import time
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from hf_vq.cards.merging import add_results, fill_card, has_part, merge_metadata
from hf_vq.cards.tokenizer import tokenizer_card
from hf_vq.modeling.configuration_vq import VQConfig


def ours(psnr: float = 20.0, **settings: Any) -> str:
    """A generated card."""
    config = VQConfig(architecture="sqvae", image_size=32, base_channels=16)
    return str(tokenizer_card(config, {"psnr": psnr}, repo_id="me/vq", **settings))


def index(*results: tuple[str, float], name: str = "vq") -> list[dict[str, Any]]:
    """Metadata of some results."""
    found = [EvalResult("t", "d", "d", metric_type=metric, metric_value=value) for metric, value in results]
    return eval_results_to_model_index(name, found)


@pytest.mark.parametrize(
    ("theirs", "record", "new", "merged"),
    [
        ({}, {}, {"license": "mit"}, {"license": "mit"}),
        ({"license": "gpl"}, {}, {"license": "mit"}, {"license": "gpl"}),
        ({"license": "gpl"}, {"license": "gpl"}, {"license": "mit"}, {"license": "mit"}),
        ({"license": "gpl"}, {"license": "mit"}, {"license": "mit"}, {"license": "gpl"}),
        ({"license": "mit"}, {"license": "mit"}, {}, {}),
        ({"license": "gpl"}, {"license": "mit"}, {}, {"license": "gpl"}),
        ({"language": "en"}, {}, {}, {"language": "en"}),
        ({"tags": ["a", "old"]}, {"tags": ["old"]}, {"tags": ["new"]}, {"tags": ["a", "new"]}),
        ({"tags": "a"}, {}, {"tags": ["b"]}, {"tags": ["a", "b"]}),
        ({"tags": ["old", "a"]}, {"tags": ["old"]}, {}, {"tags": ["a"]}),
        ({"model-index": index(("p", 1))}, {}, {}, {"model-index": index(("p", 1))}),
        (
            {"model-index": index(("p", 1), ("q", 2))},
            {"model-index": index(("p", 1))},
            {"model-index": index(("p", 3), ("r", 4))},
            {"model-index": index(("p", 3), ("r", 4), ("q", 2))},
        ),
        (
            {"model-index": index(("p", 9), name="mine")},
            {"model-index": index(("p", 1))},
            {"model-index": index(("p", 3))},
            {"model-index": index(("p", 9), name="mine")},
        ),
        ({"model-index": index(("p", 1))}, {"model-index": index(("p", 1))}, {}, {}),
    ],
)
def test_metadata_are_merged_in_three_ways(theirs: Any, record: Any, new: Any, merged: Any) -> None:
    """What differs from our record is a person's and stays; what equals it is ours and is renewed; lists unite."""
    assert merge_metadata(theirs, record, new) == merged


def test_an_untouched_card_is_replaced_entirely() -> None:
    """A generated card over a generated card is the new one, text and metadata."""
    assert fill_card(ours(20, license="mit"), ours(30, license="apache-2.0")) == ours(30, license="apache-2.0")


def test_a_license_is_not_taken_back_by_leaving_it_out() -> None:
    """It stays in the metadata and in the text, and a later push may still change it."""
    kept = fill_card(ours(20, license="mit"), ours(30))

    assert ModelCard(kept).data.to_dict() == ModelCard(ours(30, license="mit")).data.to_dict()
    assert ModelCard(kept).text == ModelCard(ours(30, license="mit")).text
    assert ModelCard(fill_card(kept, ours(30, license="apache-2.0"))).data["license"] == "apache-2.0"


def test_a_card_of_metadata_alone_gets_our_text() -> None:
    """As the Hub's form for new repositories leaves it: the license stays, all the rest is ours."""
    card = ModelCard(fill_card("---\nlicense: mit\n---\n", ours(20)))

    assert card.data["license"] == "mit" and card.text == ModelCard(ours(20)).text


def test_text_around_our_part_stays_where_it_is() -> None:
    """Written above, below and in the title, over several renewals; to the byte, metadata with their comments too."""
    card = ours(20).replace("# vq\n", "# Mine\n\nAbove.\n") + "\n\nBelow.\n"
    card = card.replace("library_name:", "# a comment\nlibrary_name:")
    again = fill_card(fill_card(card, ours(30)), ours(20))

    assert again == card.replace("# a comment\n", "")
    assert fill_card(card, ours(20)) == card


def test_a_card_without_our_part_does_not_overwrite() -> None:
    """Whatever else is pushed as README.md, the card that is there stays."""
    assert fill_card("# Theirs\n", "# Another\n") == "# Theirs\n"


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("---\nlicense: [mit\n---\n", "metadata cannot be read"),
        (ours().replace("<!-- hf_vq: end -->", ""), "Restore the missing one"),
        (ours() + ours(), "once each"),
    ],
)
def test_a_broken_card_is_refused(existing: str, message: str) -> None:
    """Rather than guessing what is whose."""
    with pytest.raises(ValueError, match=message):
        fill_card(existing, ours())


def test_names_cannot_end_the_comment() -> None:
    """A data set called like the end of a comment stays inside ours."""
    card = ours(dataset="a --> b")

    assert fill_card(card, ours(30)) == ours(30)


@pytest.mark.parametrize(
    "existing",
    [
        "<!-- hf_vq: begin {} -->" * 5000,
        "<!-- hf_vq: begin {" * 5000 + "} -->" * 5000,
        "---\n" + "\n" * 100_000,
        "---\na: b\n" + "\n" * 100_000 + "c: d\n",
        "---\na: b\n---\n" + "<!-- hf_vq: begin {} -->\n" * 5000,
    ],
)
def test_a_long_card_costs_time_in_proportion(existing: str) -> None:
    """A card that somebody has made to be slow is merged, or refused, at once."""
    begin = time.process_time()
    try:
        fill_card(existing, ours())
    except ValueError:
        pass
    has_part(existing)

    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "{]}",
        '{"model-index": 5}',
        '{"tags": 5}',
        '{"model-index": [{"results": 1}]}',
        "{" + '"a":{' * 10**5 + "}",
    ],
)
def test_a_malformed_record_is_a_message(record: str) -> None:
    """Whoever edits the comment learns what to do about it."""
    card = f"Mine.\n\n<!-- hf_vq: begin {record} -->\nOld.\n<!-- hf_vq: end -->\n"

    with pytest.raises(ValueError, match=r"Restore (it|the missing one), or delete both"):
        fill_card(card, ours())


@pytest.mark.parametrize("metadata", ["model-index: 5", "tags:\n  a: b\nmodel-index:\n- 3", "- a\n- b"])
def test_malformed_metadata_are_a_message(metadata: str) -> None:
    """So does whoever edits the metadata."""
    with pytest.raises(ValueError, match="Mend the block between the lines of ---"):
        fill_card(f"---\n{metadata}\n---\nMine.\n", ours())


def test_a_section_is_replaced_in_a_part_with_many_of_them() -> None:
    """Every section of the heading goes, what follows each stays."""
    card = "<!-- hf_vq: begin {} -->\n### A\nx\n### B\ny\n### A\nz\n## Limits\nw\n<!-- hf_vq: end -->"

    filled = add_results(card, [], "### A\nnew")

    assert "### B\ny\n" in filled and "x\n" not in filled and "z\n" not in filled and "## Limits\nw\n" in filled
