"""The numbers of an evaluation in the cards of what was measured."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from transformers import PreTrainedModel

from hf_vq.cards.files import CARD_FILE, save_results
from hf_vq.cards.merging import add_results, fill_card, has_part, results_in
from hf_vq.cards.tokenizer import METRICS
from hf_vq.evaluation.report import Report, metric
from hf_vq.hub.repository import fetch_file, publish_folder
from hf_vq.kinds import write_card
from hf_vq.utils.files import write_text
from hf_vq.utils.text import plain_id

logger = logging.getLogger(__name__)

_TASKS = {
    "tokenizer": ("image-to-image", "Image reconstruction"),
    "generator": ("unconditional-image-generation", "Image generation"),
}


def update_cards(report: Report, models: Sequence[tuple[str, PreTrainedModel]]) -> None:
    """Writes each model's numbers, with the protocol, into its card: one commit on the Hub, or a folder's README.md.

    What a person wrote stays; numbers of the same data set and split from an earlier evaluation are replaced, those of
    an evaluation of other weights are dropped. Values that are not finite are left out.

    Args:
        report: The numbers.
        models: Name, folder or Hub id, and model, in the order of the report's results.

    Raises:
        HubError: A card cannot be fetched or pushed.
        ValueError: A card cannot be filled in.
    """
    cards: list[tuple[str, str, list[EvalResult]]] = []  # name, card, and the numbers in our part of it
    for (name, model), result in zip(models, report.results, strict=True):  # all before the first is written
        folder = Path(name).expanduser()
        if folder.is_dir():
            path = folder / CARD_FILE
            existing = path.read_text(encoding="utf-8") if path.is_file() else ""
            try:
                ours = evaluated_card(existing, report, result, model)
                cards.append((name, fill_card(existing, ours), results_in(ModelCard(ours).data.to_dict())[1]))
            except ValueError as error:
                raise ValueError(f"{path} cannot be filled in: {error}") from error
            continue
        try:
            existing = fetch_file(name, CARD_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            existing = ""
        ours = evaluated_card(existing, report, result, model, repo_id=plain_id(name))
        cards.append((name, ours, results_in(ModelCard(ours).data.to_dict())[1]))
    for name, card, results in cards:
        folder = Path(name).expanduser()
        if folder.is_dir():
            write_text(card, folder / CARD_FILE)
            save_results(results, folder)
            logger.info("Updated %s", folder / CARD_FILE)
            continue
        with tempfile.TemporaryDirectory() as temporary:
            (Path(temporary) / CARD_FILE).write_text(card, encoding="utf-8")
            save_results(results, Path(temporary))
            logger.info(
                "Updated %s", publish_folder(temporary, plain_id(name), commit_message="Add evaluation results")
            )


def evaluated_card(
    existing: str,
    report: Report,
    result: dict[str, Any],
    model: PreTrainedModel,
    *,
    repo_id: str | None = None,
) -> str:
    """The generated part of a model's card with a report's numbers in it, ready for `fill_card`.

    Args:
        existing: The model's card; a new part is written if it has none.
        report: Of the numbers.
        result: The model's in it.
        model: The model.
        repo_id: Where it will be loaded from.
    """
    if not has_part(existing):
        existing = str(write_card(model, {}, repo_id=repo_id))
    dataset = report.protocol["dataset"]
    task_type, task_name = _TASKS[report.kind]
    settings = report.settings([result])
    results = []
    for key, value in result["metrics"].items():
        shown = metric(key, report.kind, report.protocol["features"]["name"])
        if shown is not None and math.isfinite(value):
            results.append(
                EvalResult(
                    task_type=task_type,
                    task_name=task_name,
                    dataset_type=dataset["name"],
                    dataset_name=dataset["name"],
                    dataset_split=dataset["split"],
                    metric_type=METRICS[key].type if key in METRICS else key,
                    metric_name=shown.title,
                    metric_value=float(f"{value:.6g}"),
                    metric_args=settings,
                )
            )
    split = f"{dataset['name']}, split {dataset['split']}"
    section = f"### Measured by `hf-vq evaluate` on {split}\n\n{report.to_markdown([result['label']])}"
    # So that it takes the place of the section that an older card has.
    existing = existing.replace("### Measured by `scripts/evaluate.py` on", "### Measured by `hf-vq evaluate` on")
    return add_results(existing, results, section)
