"""What all cards share: one template, and the slots that each kind of card fills.

A kind of card is a function from a configuration and facts about the model to `Slots`, marked by `@card`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, TypeVar

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData, RepoCard
from typing_extensions import Unpack

from hf_vq.cards.citations import CITATIONS, paper_links
from hf_vq.cards.merging import LICENSE_SECTION, metadata_record
from hf_vq.utils.text import is_hub_id, public_name

TEMPLATE = Path(__file__).with_name("template.md")
FOLDER = "path/to/this/folder"  # where a model without a repository will be loaded from
MAX_CLASSES = 20  # named on a card

Rows = Mapping[str, Any]
Card = TypeVar("Card", bound=RepoCard)


class Metric(NamedTuple):
    """How a card shows a number."""

    type: str  # in the card's metadata
    title: str
    format: str  # for `str.format`
    images: str = "num_images"  # key of the number of images that it is of
    counted: str | None = None  # key of a count to print behind it
    note: str = ""  # said below the numbers, if it was measured


@dataclass(kw_only=True)
class Slots:
    """What a kind of card fills into the template."""

    opening: str  # the first sentences
    code: str  # Python that people can copy
    tags: Sequence[str]
    title: str  # of a card without a repository
    contents: str = ""  # between the opening and the code
    pipeline_tag: str | None = None  # the task by which the Hub offers the model
    task: tuple[str, str] = ("", "")  # type and name of the measured task
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    preprocessing: str | None = None  # how the measured images were made ready
    note: str = ""  # below the measured numbers
    picture_alt: str = ""  # the picture in words
    picture_caption: str = ""  # unless the caller knows a better one
    usage: str = ""  # below the code
    images: str = ""  # a last sentence there
    model: Rows = field(default_factory=dict)  # None values of rows are left out
    recipe: Rows = field(default_factory=dict)
    limits: Sequence[str] = ()  # what the model cannot do
    works: Iterable[str] = ()  # cited: keys of `CITATIONS`, or BibTeX entries


class Facts(TypedDict, total=False):
    """Facts about a model that its configuration does not hold; all of them may be left out."""

    repo_id: str | None  # where the model will be loaded from; a placeholder by default
    revision: str | None  # the branch there, unless it is the main one
    name: str | None  # of a model without a repository, such as its run's
    license: str | None  # identifier of the weights' license on the Hub
    num_parameters: int | None  # of a generator without those of its tokenizer
    versions: Mapping[str, str] | None  # library -> version it was trained with
    picture: str | None  # file name, in the repository, of a picture
    picture_caption: str | None  # what it shows
    preprocessing: str | None  # how the measured images were made ready, if not as the image processor does it
    base_model: str | None  # Hub id of the model that it was fine-tuned from
    methods: Sequence[str]  # keys of `CITATIONS` to be cited besides those that the configuration implies
    sampling: Mapping[str, Any] | None  # arguments of `generate` in the card's code


class CardFunction(Protocol):
    """Writes the card of a model; `card` says what of."""

    def __call__(
        self,
        config: Any,
        metrics: Mapping[str, float],
        dataset: str | None = None,
        split: str | None = None,
        training: Rows | None = None,
        **facts: Unpack[Facts],
    ) -> ModelCard: ...


def card(slots_of: Callable[[Any, Facts, str], Slots]) -> CardFunction:
    """Makes the function that writes a kind of card of one that fills the slots.

    What it makes takes

    - `config`: the model's configuration;
    - `metrics`: what was measured; keys that the slots lack and values that are not finite are left out;
    - `dataset`: the data set that the model was trained on; of a local path only the last part is printed;
    - `split`: the split that the metrics were measured on;
    - `training`: further rows of the recipe, such as ``{"steps": 1500}``; None values are left out;
    - the keywords of `Facts`.

    It returns the card; ``str(card)`` is the README, ``card.data`` its metadata. The generated part stands between
    comments, so that `fill_card` can renew it.

    Args:
        slots_of: From the configuration, the facts, and the data set in parentheses (or nothing), to the slots.
    """

    def write(
        config: Any,
        metrics: Mapping[str, float],
        dataset: str | None = None,
        split: str | None = None,
        training: Rows | None = None,
        **facts: Unpack[Facts],
    ) -> ModelCard:
        """Writes the card of a model; see `card` in `hf_vq.cards.base`."""
        name, repo_id, license = public_name(dataset), facts.get("repo_id"), facts.get("license")
        slots = slots_of(config, facts, f" (`{name}`)" if name else "")
        shown = {key: metric for key, metric in slots.metrics.items() if math.isfinite(metrics.get(key, math.nan))}
        results, measured = _measured(slots, shown, metrics, name, split)
        data = ModelCardData(
            library_name="transformers",
            license=license,
            pipeline_tag=slots.pipeline_tag,
            tags=list(slots.tags),
            base_model=facts.get("base_model"),
            datasets=[name] if name and is_hub_id(name) else None,
            model_name=repo_id.rstrip("/").split("/")[-1] if repo_id else facts.get("name") or slots.title,
            eval_results=results or None,
        )
        versions = ", ".join(f"{library} {version}" for library, version in (facts.get("versions") or {}).items())
        citations = [CITATIONS.get(work, work) for work in dict.fromkeys(slots.works)]
        recipe = {"data set": name, **slots.recipe, **(training or {}), "trained with": versions or None}
        return write_card(
            ModelCard,
            data,
            slots,
            is_model=True,
            **loading(facts),
            picture=facts.get("picture"),
            picture_caption=facts.get("picture_caption") or slots.picture_caption,
            model=table_rows(_printed(slots.model)),
            recipe=table_rows(_printed(recipe)),
            measured=table_rows(measured),
            note=" ".join(filter(None, [slots.note, *(metric.note for metric in shown.values())])),
            license=license,
            license_section=LICENSE_SECTION.format(license),
            papers=", ".join(paper_links(citations)),
            citations=citations,
        )

    write.__name__ = write.__qualname__ = slots_of.__name__
    return write


def loading(facts: Facts) -> dict[str, str]:
    """What the code of a card needs to load the model: all from one commit, where there are commits.

    A card cannot name the commit that it is part of, so its code asks for it. With `revision`, transformers does not
    announce each file of code that it downloads.

    Returns:
        `name`, then `model_info`, a line of imports, and `pin`, a line that sets `revision`, and `revision`, an
        argument; these three are empty for a folder.
    """
    repo_id = facts.get("repo_id")
    if not is_hub_id(repo_id):
        return {"name": repo_id or FOLDER, "model_info": "", "pin": "", "revision": ""}
    branch = f', revision="{facts["revision"]}"' if facts.get("revision") else ""
    return {
        "name": str(repo_id),
        "model_info": "from huggingface_hub import model_info\n",
        "pin": f"revision = model_info(name{branch}).sha  # the newest commit; write out its hash to stay with it\n",
        "revision": ", revision=revision",
    }


def write_card(kind: type[Card], data: CardData, slots: Slots, **values: Any) -> Card:
    """Fills the template of a `ModelCard` or a `DatasetCard`; `values` are what a model's card says besides."""
    values = {"title": data.get("model_name") or slots.title, "slots": slots} | values
    return kind.from_template(data, template_path=str(TEMPLATE), record=metadata_record(data), **values)


def _measured(
    slots: Slots, shown: Mapping[str, Metric], metrics: Mapping[str, float], dataset: str | None, split: str | None
) -> tuple[list[EvalResult], list[list[str]]]:
    """What was measured, for the metadata and as rows of a table."""
    details: dict[str, Any] = {"preprocessing": slots.preprocessing} if slots.preprocessing else {}
    details |= {metric.images: int(metrics[metric.images]) for metric in shown.values() if metric.images in metrics}
    results, rows = [], []
    for key, metric in shown.items():
        value = float(f"{metrics[key]:.6g}")
        results.append(
            EvalResult(
                task_type=slots.task[0],
                task_name=slots.task[1],
                dataset_type=dataset or "unknown",
                dataset_name=dataset or "held-out images",
                dataset_split=split,
                dataset_args=details or None,
                metric_type=metric.type,
                metric_name=metric.title,
                metric_value=value,
            )
        )
        printed = metric.format.format(value)
        if metric.counted is not None and metric.counted in metrics:
            printed += f" ({int(metrics[metric.counted]):,})"
        images = f"{details[metric.images]:,}" if metric.images in details else ""
        preprocessing = [slots.preprocessing] if slots.preprocessing else []
        rows.append([metric.title, printed, dataset or "held-out images", split or "", images, *preprocessing])
    return results, rows


def table_rows(rows: Iterable[Sequence[Any]]) -> str:
    """The lines of a Markdown table below its header."""
    return "\n".join(f"| {' | '.join(map(table_cell, row))} |" for row in rows)


def table_cell(value: Any) -> str:
    """Text in a table, where a bar or a line break would end the cell."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _printed(rows: Rows) -> list[tuple[str, str]]:
    formats = {int: "{:,}", float: "{:g}"}
    return [
        (key.replace("_", " "), formats.get(type(value), "{}").format(value))
        for key, value in rows.items()
        if value is not None
    ]


def named_classes(names: Sequence[str]) -> str:
    """How many classes there are, and the first names."""
    more = ", ..." if len(names) > MAX_CLASSES else ""
    return f"{len(names):,}: {', '.join(names[:MAX_CLASSES])}{more}"
