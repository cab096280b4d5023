"""Where a run's numbers and pictures go: `metrics.jsonl`, PNG files, and Accelerate's trackers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from hf_vq.training.arguments import BaseTrainingArguments
from hf_vq.training.metrics_log import MetricsFile
from hf_vq.training.run_folder import METRICS_FILE, PICTURES_FOLDER
from hf_vq.utils.files import atomic_file, discard_leftovers

logger = logging.getLogger(__name__)


class Reporter:
    """Writes on the main process; on the others every method does nothing.

    Args:
        accelerator: Made with the trackers to use.
        output_dir: Folder of the run.
        args: The settings, for the trackers' names.

    Raises:
        ValueError: A tracker was asked for whose package is not installed.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, args: BaseTrainingArguments) -> None:
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.args = args
        self.metrics_file = MetricsFile(output_dir / METRICS_FILE)
        # Accelerate leaves out what it cannot import without a word.
        available = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
        missing = [name for name in args.report_to if name != "all" and name not in available]
        if missing:
            raise ValueError(f"report_to names {', '.join(missing)}, but the package is not installed.")

    def start(self, settings: Mapping[str, Any], step: int) -> None:
        """Opens the trackers, and forgets what was reported after `step`, where the run goes on."""
        if self.accelerator.is_main_process:
            self.metrics_file.truncate(step)
            discard_leftovers(self.output_dir / PICTURES_FOLDER)
        if self.args.report_to:
            self.accelerator.init_trackers(
                self.args.run_name,
                config=_flat({**settings["arguments"], "model": settings["model"]}),
                init_kwargs={"tensorboard": {"purge_step": step + 1}} if step else {},
            )

    def training(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Reports metrics of training."""
        self._numbers(step, "train", {"epoch": epoch, **values})

    def evaluation(
        self, step: int, epoch: float, values: Mapping[str, float], pictures: Mapping[str, Image.Image]
    ) -> None:
        """Reports an evaluation: its metrics, and its pictures as `eval/step-N-NAME.png`."""
        self._numbers(step, "eval", {"epoch": epoch, **values})
        if not self.accelerator.is_main_process:
            return
        summary = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
        logger.info("step %d: %s", step, summary)
        folder = self.output_dir / PICTURES_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            with atomic_file(folder / f"step-{step:07d}-{name}.png") as temporary:
                picture.save(temporary, format="PNG")
        arrays = {f"eval/{name}": np.asarray(picture.convert("RGB")) for name, picture in pictures.items()}
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                batches = {name: array[None] for name, array in arrays.items()}
                tracker.log_images(batches, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: [array] for name, array in arrays.items()}, step=step)

    def _numbers(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.metrics_file.append(step, split, values)
        self.accelerator.log({f"{split}/{name}": value for name, value in values.items()}, step=step)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names and the value types that trackers take."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
