"""A new card for weights that have one already: what the older card knows of their making and quality stays."""

from __future__ import annotations

import re
from collections.abc import Collection

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from hf_vq.cards.citations import paper_links
from hf_vq.cards.merging import fill_card, find_part, measured_weights, metadata_record, read_record, results_in

_HEADING = re.compile(r"^(?=## )", re.MULTILINE)
_ROW = re.compile(r"^\| (.*?) \| .* \|$", re.MULTILINE)
_BIBTEX = re.compile(r"```bibtex\n(.*?)\n```", re.DOTALL)
_SAMPLING = re.compile(r"^output = model\.generate\(.*$", re.MULTILINE)
_PICTURE = re.compile(r"!\[[^\]\n]{0,200}\]\(([\w-][\w.-]{0,200})\)")

Sections = dict[str, str]


def keep_known(
    ours: str, theirs: str, *, rows: Collection[str] = (), metrics: bool = False, picture: bool = False
) -> str:
    """Fills a new card of weights with what their older card says and the new one does not.

    Args:
        ours: The new card.
        theirs: The older card, of the same weights.
        rows: The rows of its recipe, such as `"data set"`, that take the place of the older card's; the others stay.
        metrics: Whether the new card's numbers take the place of the older ones. What an evaluator added to those
            under headings of its own stays.
        picture: Whether the new card's picture takes the place of the older one.

    Returns:
        The card's text, with what a person wrote into the older card.

    Raises:
        ValueError: The older card cannot be read.
    """
    old, new = find_part(theirs), find_part(ours)
    assert new is not None, "the new card has no part of ours"
    if old is None:
        return fill_card(theirs, ours)
    there, here, record = _sections(old.text), _sections(new.text), read_record(old)
    data = ModelCard(ours).data.to_dict()
    if not picture:
        here[""] = there[""].replace(old.record, new.record, 1)
    if call := _SAMPLING.search(there.get("Use", "")):
        here["Use"] = _SAMPLING.sub(lambda _: call[0], here["Use"])
    if "Training" in there:
        here["Training"] = _merged_rows(there["Training"], here.get("Training", ""), rows)
    if "data set" not in rows:
        here["Limits"] = there.get("Limits", here["Limits"])
        data["datasets"] = record.get("datasets")
    results, old_results = results_in(data)[1], results_in(record)[1]
    evaluation = there.get("Evaluation", here["Evaluation"])
    if metrics:
        evaluation = here["Evaluation"] + "".join(re.split(r"^(?=### )", evaluation, flags=re.MULTILINE)[1:])
        old_results = [result for result in old_results if measured_weights(result)]
    here["Evaluation"] = evaluation
    here["Citation"] = _citations(here["Citation"], there.get("Citation", ""))
    title = ModelCard(ours).text.strip().partition("\n")[0]
    if results + old_results:
        data["model-index"] = eval_results_to_model_index(title.removeprefix("# "), results + old_results)
    card_data = ModelCardData(**{key: value for key, value in data.items() if value is not None})
    part = "".join(here[name] for name in _order(here)).replace(new.record, metadata_record(card_data), 1)
    filled = fill_card(theirs, f"---\n{card_data}\n---\n{part}\n")
    if re.fullmatch(r"# [^\n]*", ModelCard(theirs).text.replace(old.text, "").strip()):  # no more than a title
        body = ModelCard(filled).text
        filled = filled.removesuffix(body) + re.sub(r"^# [^\n]*", lambda _: title, body, count=1, flags=re.MULTILINE)
    return filled


def pictures_in(card: str) -> list[str]:
    """The files beside a card that it shows."""
    return list(dict.fromkeys(_PICTURE.findall(card)))


def _sections(part: str) -> Sections:
    """The sections of our part by their headings; what stands before the first has the name ""."""
    first, *others = _HEADING.split(part)
    return {"": first} | {section.partition("\n")[0].removeprefix("## ").strip(): section for section in others}


def _order(sections: Sections) -> list[str]:
    """The names of sections as the template has them."""
    known = ["", "Use", "Model", "Training", "Evaluation", "Limits", "License", "Citation"]
    return [name for name in known if name in sections]


def _merged_rows(old: str, new: str, renewed: Collection[str]) -> str:
    """The older recipe with some rows taken from the new one."""
    rows = {row[1]: row[0] for row in _ROW.finditer(old)}
    last = next(reversed(rows.values()), "|---|---|")
    news = {row[1]: row[0] for row in _ROW.finditer(new) if row[1] in renewed}
    table = "\n".join(
        {**{name: row for name, row in rows.items() if name not in renewed or name in news}, **news}.values()
    )
    start = old.find("|---|---|\n") + len("|---|---|\n")
    return old[:start] + table + old[old.rindex(last) + len(last) :]


def _citations(ours: str, theirs: str) -> str:
    """Our citations, then those of the older card that we lack; the last line of our part stays last."""
    entries: dict[str, str] = {}
    for entry in [*_BIBTEX.findall(ours), *_BIBTEX.findall(theirs)]:
        entries.setdefault(entry.partition(",")[0], entry)
    blocks = "\n\n".join(f"```bibtex\n{entry}\n```" for entry in entries.values())
    papers = ", ".join(paper_links(entries.values()))
    end = ours[ours.rindex("<!-- hf_vq: end") :]
    return f"## Citation\n\n{f'Papers: {papers}.' if papers else ''}\n\n{blocks}\n{end}".replace("\n\n\n", "\n")
