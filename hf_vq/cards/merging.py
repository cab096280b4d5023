"""Two cards into one: the text and the metadata that a person wrote stay, what this package wrote is renewed.

A card's own part stands between two HTML comments, which the Hub does not show. The first records the metadata that
were written along with it, so that the next time what a person has changed can be told from what is merely old.
"""

from __future__ import annotations

import json
import re
from typing import Any

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

LICENSE_SECTION = "## License\n\n{}\n"
_AFTER_LICENSE = "## Citation"

_BEFORE_SECTIONS = "\n## Limits"

_PART = re.compile(r"<!-- hf_vq: begin (\{.*?\}) -->.*?<!-- hf_vq: end -->", re.DOTALL)
_MARKER = re.compile(r"<!-- hf_vq: (?:begin|end)\b")

Metadata = dict[str, Any]


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
    part = _PART.search(ours)
    if part is None:
        return existing
    try:
        old = ModelCard(existing)
    except Exception as error:
        raise ValueError(f"its metadata cannot be read ({error}). Mend the block between the lines of ---.") from error
    place = _PART.search(old.text)
    if len(_MARKER.findall(old.text)) != (0 if place is None else 2):
        raise ValueError(
            "the comments '<!-- hf_vq: begin ... -->' and '<!-- hf_vq: end -->' must stand around the generated part, "
            "once each. Restore the missing one, or delete both together with that part."
        )
    new = ModelCard(ours)
    theirs = old.data.to_dict()
    record = json.loads(place[1]) if place else {}
    filling = part[0]
    granted = record.get("license")
    if granted and theirs.get("license") == granted and not new.data.get("license"):
        # Who pushes again without naming the license does not take it back.
        new.data["license"] = granted
        filling = filling.replace(part[1], metadata_record(new.data), 1)
        filling = filling.replace(_AFTER_LICENSE, f"{LICENSE_SECTION.format(granted)}\n{_AFTER_LICENSE}", 1)
    metadata = merge_metadata(theirs, record, new.data.to_dict())
    license = new.data.get("license")
    if license and metadata["license"] != license:
        filling = filling.replace(LICENSE_SECTION.format(license), LICENSE_SECTION.format(metadata["license"]))
    if place is not None:
        text = old.text[: place.start()] + filling + old.text[place.end() :]
    elif old.text.strip():
        text = f"{old.text.rstrip()}\n\n{filling}\n"
    else:
        text = new.text.replace(part[0], filling)
    if metadata == theirs:  # with its comments and its order
        return existing.removesuffix(old.text) + text
    return f"---\n{ModelCardData(**metadata)}\n---\n{text}"


def has_part(card: str) -> bool:
    """Whether a card holds our part."""
    return _PART.search(card) is not None


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
    """
    part = _PART.search(card)
    assert part is not None, "the card has no part of ours"
    record = json.loads(part[1])
    name, old = _results(record)
    renewed = {(result.unique_identifier, result.metric_type) for result in results}
    weights = set().union(*map(_measured_weights, results))
    kept = [
        result
        for result in old
        if (result.unique_identifier, result.metric_type) not in renewed and _measured_weights(result) <= weights
    ]
    name = name or record.get("model_name") or "model"
    data = ModelCardData(**record | {"model-index": eval_results_to_model_index(name, kept + results)})
    section = section.strip() + "\n"
    heading = re.escape(section.partition("\n")[0])
    text = re.sub(rf"^{heading}\n.*?(?=^##|^<!-- hf_vq: end)", "", part[0], flags=re.DOTALL | re.MULTILINE)
    end = text.find(_BEFORE_SECTIONS)
    end = text.rindex("<!-- hf_vq: end") if end < 0 else end + 1
    text = f"{text[:end]}{section}\n{text[end:]}".replace(part[1], metadata_record(data), 1)
    return f"---\n{data}\n---\n{text}\n"


def _measured_weights(result: EvalResult) -> set[str]:
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
    (name, values), (old_name, old), (new_name, new) = (_results(metadata) for metadata in (theirs, record, ours))
    added = [result for result in values if result not in old]
    measured = [result for result in new if not any(result.is_equal_except_value(other) for other in added)]
    if not measured + added:
        return None
    return eval_results_to_model_index((name if name != old_name else new_name) or name or "", measured + added)


def _results(metadata: Metadata) -> tuple[str | None, list[EvalResult]]:
    index = metadata.get("model-index")
    return model_index_to_eval_results(index) if index else (None, [])
