"""The Hub repository of a run: opened at its start, filled at its end."""

from __future__ import annotations

import logging
from pathlib import Path

from hf_vq.hub.repository import create_repository, publish_folder
from hf_vq.training.arguments import BaseTrainingArguments

logger = logging.getLogger(__name__)


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
