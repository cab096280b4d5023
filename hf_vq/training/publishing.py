"""What a run publishes: the card of its model, and the Hub repository, opened at its start and filled at its end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard

from hf_vq.hub.repository import create_repository, publish_folder
from hf_vq.kinds import write_card
from hf_vq.modeling.version_vq import __version__
from hf_vq.training.base_arguments import BaseTrainingArguments

logger = logging.getLogger(__name__)


def card_of_run(trainer: Any, dataset: str | None, **facts: Any) -> ModelCard:
    """The card of a run's model.

    Args:
        trainer: The run's, a `BaseTrainer`: it knows what was measured last, and the recipe.
        dataset: What it was trained on.
        **facts: Further ones, see `hf_vq.cards.base.Facts`.
    """
    base = trainer.base_model
    return write_card(
        trainer.published_model(),
        trainer.eval_metrics or {},
        dataset,
        trainer.args.measured_split() if dataset else None,
        trainer.recipe(),
        repo_id=trainer.hub_repository,
        base_model=base["name"] if base and base["on_hub"] else None,
        name=trainer.output_dir.resolve().name,
        versions={"torch": torch.__version__, "transformers": transformers.__version__, "hf_vq": __version__},
        **facts,
    )


def open_repository(args: BaseTrainingArguments) -> str | None:
    """Creates the repository that a run will publish to, so that a user who may not push there learns it at once.

    Returns:
        Its id; None if the run does not publish.
    """
    if not args.push_to_hub:
        return None
    return create_repository(
        args.hub_model_id or Path(args.output_dir).resolve().name, private=args.hub_private_repo or None
    )


def publish_model(folder: Path, repository: str, step: int) -> None:
    """Publishes a folder with the model of step `step`. What goes wrong is reported and takes nothing away."""
    try:
        commit = publish_folder(folder, repository, commit_message=f"Upload model of step {step}")
        logger.info("The final model is published: %s", commit)
    except (OSError, ValueError) as error:
        logger.error(
            "%s\nThe final model is safe in '%s'. To publish it by hand:\n"
            "    python -c \"from hf_vq.hub import publish_folder; publish_folder('%s', '%s')\"",
            error, folder, folder, repository,
        )  # fmt: skip
