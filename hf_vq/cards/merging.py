"""Two cards into one: the text and the metadata that a person wrote stay, what this package wrote is renewed.

A card's own part stands between two HTML comments, which the Hub does not show. The first records the metadata that
were written along with it, so that the next time what a person has changed can be told from what is merely old.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

LICENSE_SECTION = "## License\n\n{}\n"
_AFTER_LICENSE = "## Citation"

_BEFORE_SECTIONS = "\n## Limits"

# Found by plain searches, each from left to right once: a regular expression tries every beginning with every end.
_BEGIN, _BEGUN = "<!-- hf_vq: begin ", " -->"
_END = "<!-- hf_vq: end -->"
_MARKERS = ("<!-- hf_vq: begin", "<!-- hf_vq: end")
_METADATA_END = re.compile(r"[\r\n]---(?:\r\n|\r|\n|\Z)")
_EMPTY_LINES = re.compile(r"(?:\r\n|\r|\n){100,}")

Metadata = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Our part of a card: where it stands, the JSON in its first comment, and all of its text."""

    start: int
    end: int
    record: str
    text: str


def metadata_record(data: CardData) -> str:
    """The metadata as they stand in the comment at the beginning of our part."""
    # The comment ends at its first ">".
    return json.dumps(data.to_dict(), ensure_ascii=False).replace(">", "\\u003e")


def fill_card(existing: str, ours: str) -> str:
    """Fills a generated card into one that exists.

    Our part replaces the one that an earlier push left, or is appended to a card without one. Of the metadata, keys
    that a person set or changed win; what we wrote is renewed; lists (tags, data sets, results) are united.

    Args:
        existing: The card in the repository.
        ours: The generated card. One without a part of ours changes nothing.

    Returns:
        The text of the merged card.

    Raises:
        ValueError: The existing card's metadata are no YAML mapping, or one of the two comments around our part is
            missing or there twice.
    """
    part = find_part(ours)
    if part is None:
        return existing
    metadata_block, old_text = _split(existing)
    try:
        theirs = ModelCard(metadata_block).data.to_dict()
    except Exception as error:
        raise ValueError(f"its metadata cannot be read ({error}). Mend the block between the lines of ---.") from error
    place = find_part(old_text)
    if sum(map(old_text.count, _MARKERS)) != (0 if place is None else 2):
        raise ValueError(
            "the comments '<!-- hf_vq: begin ... -->' and '<!-- hf_vq: end -->' must stand around the generated part, "
            "once each. Restore the missing one, or delete both together with that part."
        )
    new = ModelCard(ours)
    record = read_record(place) if place else {}
    filling = part.text
    granted = record.get("license")
    if granted and theirs.get("license") == granted and not new.data.get("license"):
        # Who pushes again without naming the license does not take it back.
        new.data["license"] = granted
        filling = filling.replace(part.record, metadata_record(new.data), 1)
        filling = filling.replace(_AFTER_LICENSE, f"{LICENSE_SECTION.format(granted)}\n{_AFTER_LICENSE}", 1)
    try:
        metadata = merge_metadata(theirs, record, new.data.to_dict())
    except (TypeError, AttributeError, LookupError, ValueError) as error:
        raise ValueError(
            f"its metadata, or our record of them, have values of a kind that a card does not have ({error!r}). Mend "
            "the block between the lines of ---, or delete our part with its two comments."
        ) from error
    license = new.data.get("license")
    if license and metadata["license"] != license:
        filling = filling.replace(LICENSE_SECTION.format(license), LICENSE_SECTION.format(metadata["license"]))
    if place is not None:
        text = old_text[: place.start] + filling + old_text[place.end :]
    elif old_text.strip():
        text = f"{old_text.rstrip()}\n\n{filling}\n"
    else:
        text = new.text.replace(part.text, filling)
    if metadata == theirs:  # with its comments and its order
        return existing.removesuffix(old_text) + text
    return f"---\n{ModelCardData(**metadata)}\n---\n{text}"


def has_part(card: str) -> bool:
    """Whether a card holds our part."""
    return find_part(card) is not None


def add_results(card: str, results: list[EvalResult], section: str) -> str:
    """A card's own part with further measurements in it, to be filled into the card with `fill_card`.

    The section goes to the end of the part's evaluation, or in place of the one with the same heading. Of the results
    that the part recorded, those of the same metric, task, data set and split are replaced.

    Args:
        card: A card that has our part.
        results: The measurements.
        section: Markdown that begins with a heading of the third level.

    Returns:
        A card of the part alone, with the metadata that belong to it.

    Raises:
        ValueError: If the part's record of its metadata cannot be read.
    """
    part = find_part(card)
    assert part is not None, "the card has no part of ours"
    record = read_record(part)
    name, old = results_in(record)
    renewed = {(result.unique_identifier, result.metric_type) for result in results}
    weights = set().union(*map(measured_weights, results))
    kept = [
        result
        for result in old
        if (result.unique_identifier, result.metric_type) not in renewed and measured_weights(result) <= weights
    ]
    name = name or record.get("model_name") or "model"
    data = ModelCardData(**record | {"model-index": eval_results_to_model_index(name, kept + results)})
    section = section.strip() + "\n"
    text = _without_section(part.text, section.partition("\n")[0])
    end = text.find(_BEFORE_SECTIONS)
    end = text.rindex("<!-- hf_vq: end") if end < 0 else end + 1
    text = f"{text[:end]}{section}\n{text[end:]}".replace(part.record, metadata_record(data), 1)
    return f"---\n{data}\n---\n{text}\n"


def find_part(card: str) -> Part | None:
    start = card.find(_BEGIN)
    record_start = start + len(_BEGIN)
    record_end = card.find(_BEGUN, record_start)
    end = card.find(_END, record_end)
    if min(start, record_end, end) < 0 or card[record_start] + card[record_end - 1] != "{}":
        return None
    end += len(_END)
    return Part(start, end, card[record_start:record_end], card[start:end])


def read_record(part: Part) -> Metadata:
    """The metadata that we wrote into a card.

    Raises:
        ValueError: If the record is not what we write.
    """
    try:
        record = json.loads(part.record)
        results_in(record)
        for name in ("tags", "datasets"):
            if not isinstance(record.get(name) or [], list | str):
                raise TypeError(f"{name} is no list")
    except Exception as error:
        raise ValueError(
            f"the record in the comment '{_BEGIN}...{_BEGUN}' cannot be read ({error!r}). Restore it, or delete both "
            "comments together with the part between them."
        ) from error
    return record


def _split(card: str) -> tuple[str, str]:
    """The block of metadata and the text of a card, as `ModelCard` splits them, but in one go through the text."""
    opened = card.lstrip()
    end = _METADATA_END.search(opened, 3) if opened.startswith(("---\n", "---\r")) else None
    if end is None:
        return "", card
    block = _EMPTY_LINES.sub("\n\n", opened[3 : end.start()].strip("\r\n"))
    return f"---\n{block}\n---\n", opened[end.end() :]


def _without_section(text: str, heading: str) -> str:
    """The text without the section of this heading, up to the next heading or to the end of our part."""
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        if line.rstrip("\r\n") == heading:
            inside = True
        elif line.startswith(("##", _MARKERS[1])):
            inside = False
        if not inside:
            kept.append(line)
    return "".join(kept)


def measured_weights(result: EvalResult) -> set[str]:
    """The hashes of the weights that a measurement names; none if it names none."""
    return set(re.findall(r"weights sha256 (\w+)", str(result.metric_args)))


def merge_metadata(theirs: Metadata, record: Metadata, ours: Metadata) -> Metadata:
    """Metadata of three cards into one.

    Args:
        theirs: What the repository's card has.
        record: What we wrote there the last time; empty if we never did.
        ours: What we would write now.

    Returns:
        The merged metadata: in the order of `theirs`, then what is new.
    """
    merged = dict(theirs)
    for key in {**record, **ours}:
        if key == "model-index":
            continue
        old, new, value = record.get(key), ours.get(key), theirs.get(key)
        if value is None or value == old:
            merged[key] = new
        elif isinstance(new or old, list):
            values = value if isinstance(value, list) else [value]
            added = [item for item in values if item not in (old or [])]
            merged[key] = [item for item in values if item in added or item in (new or [])]
            merged[key] += [item for item in new or [] if item not in values]
    merged["model-index"] = _merge_results(theirs, record, ours)
    return {key: value for key, value in merged.items() if value is not None}


def _merge_results(theirs: Metadata, record: Metadata, ours: Metadata) -> list[Metadata] | None:
    (name, values), (old_name, old), (new_name, new) = (results_in(metadata) for metadata in (theirs, record, ours))
    added = [result for result in values if result not in old]
    measured = [result for result in new if not any(result.is_equal_except_value(other) for other in added)]
    if not measured + added:
        return None
    return eval_results_to_model_index((name if name != old_name else new_name) or name or "", measured + added)


def results_in(metadata: Metadata) -> tuple[str | None, list[EvalResult]]:
    index = metadata.get("model-index")
    return model_index_to_eval_results(index) if index else (None, [])
