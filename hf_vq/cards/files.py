"""The files that a card consists of: README.md, and its numbers in the format of the Hub's leaderboards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.utils import yaml_dump

from hf_vq.cards.merging import results_in
from hf_vq.utils.files import write_text
from hf_vq.utils.text import is_hub_id

CARD_FILE = "README.md"
RESULTS_FILE = ".eval_results/hf_vq.yaml"


def save_card(card: ModelCard, folder: Path) -> None:
    """Writes a generated card into a folder: README.md, and the numbers that are of data sets on the Hub.

    The Hub reads `.eval_results/*.yaml` beside the card's own metadata: a number appears on the board of its data set
    if that data set's `eval.yaml` has a task of the metric's name, such as `psnr`.

    Args:
        card: As the functions of this package write it.
        folder: Where; it exists. Results that an earlier card left there go.
    """
    write_text(str(card), folder / CARD_FILE)
    save_results(results_in(card.data.to_dict())[1], folder)


def save_results(results: list[EvalResult], folder: Path) -> None:
    """Writes `.eval_results/hf_vq.yaml`, or deletes it if none of the numbers is of a data set on the Hub."""
    path = folder / RESULTS_FILE
    entries = [_entry(result) for result in results if is_hub_id(result.dataset_type)]
    if not entries:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(exist_ok=True)
    write_text(yaml_dump(entries), path)


def _entry(result: EvalResult) -> dict[str, Any]:
    details = [result.metric_name, result.dataset_split and f"split {result.dataset_split}"]
    details += [f"{name.replace('_', ' ')} {value}" for name, value in (result.dataset_args or {}).items()]
    return {
        "dataset": {"id": result.dataset_type, "task_id": result.metric_type},
        "value": result.metric_value,
        "notes": "; ".join(filter(None, details)),
    }
