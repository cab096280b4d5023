"""Where a run's numbers and pictures go: `metrics.jsonl`, PNG files, and Accelerate's trackers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from hf_vq.training.base_arguments import BaseTrainingArguments
from hf_vq.training.checkpoints import CheckpointError
from hf_vq.utils.files import atomic_file, discard_leftovers, write_text
from hf_vq.utils.settings import flatten

METRICS_FILE = "metrics.jsonl"
PICTURES_FOLDER = "eval"
LOGGING_FOLDER = "logs"

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
                config=_plain({**settings["arguments"], "model": settings["model"]}),
                init_kwargs={"tensorboard": {"purge_step": step + 1}} if step else {},
            )

    def training(self, step: int, epoch: float, values: Mapping[str, float], in_words: bool = False) -> None:
        """Reports metrics of training; `in_words` also as a line, for a run without a progress bar."""
        self._numbers(step, "train", {"epoch": epoch, **values})
        if in_words and self.accelerator.is_main_process:
            losses = sorted(
                (name for name in values if name.endswith("loss")), key=lambda name: (name != "loss", name)
            )
            shown = (*losses, "learning_rate", "images_per_second")
            summary = ", ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)
            logger.info("step %d/%d: %s", step, self.args.max_steps, summary)

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
        with _writing(folder):
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


def _plain(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Settings with dotted names and the types of values that trackers take."""
    flat = flatten(settings)
    return {name: value if isinstance(value, bool | int | float) else str(value) for name, value in flat.items()}


class LogWindow:
    """Collects the metrics of the steps between two log lines, on the device, so that steps do not wait for numbers.

    Args:
        summed: Names that are added up over the window; all others are averaged.
    """

    def __init__(self, summed: frozenset[str] = frozenset()) -> None:
        self.summed = summed
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.images = 0
        self.seconds = 0.0

    def add(self, values: Mapping[str, Tensor], images: int, seconds: float) -> None:
        """Takes in the metrics of one step, the images that all processes saw in it, and how long it took."""
        for name, value in values.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach().float()
            self.totals[name] = self.totals[name] + value if name in self.totals else value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.images += images
        self.seconds += seconds

    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The window's metrics, averaged over ranks by `reduce`, and images per second of all ranks; empties it."""
        names = sorted(self.totals)
        result: dict[str, float] = {}
        if names:
            scales = [1 if name in self.summed else self.counts[name] for name in names]
            stacked = torch.stack([self.totals[name] / scale for name, scale in zip(names, scales, strict=True)])
            result = dict(zip(names, reduce(stacked).tolist(), strict=True))
        result["images_per_second"] = self.images / max(1e-9, self.seconds)
        self.totals, self.counts = {}, {}
        self.images, self.seconds = 0, 0.0
        return result

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint between two log lines has to keep."""
        return {"totals": {name: total.cpu() for name, total in self.totals.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Goes on with a window that a checkpoint interrupted; its speed counts only what is done from here."""
        self.totals = {name: total.to(device) for name, total in state["totals"].items()}
        self.counts = dict(state["counts"])
        self.images, self.seconds = 0, 0.0


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, with `step`, `split` and the metrics.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Adds a line."""
        with _writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines; the last one is left out if a kill cut it off.

        Raises:
            CheckpointError: Another line is not what `append` wrote.
        """
        if not self.path.exists():
            return []
        texts = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = []
        for number, text in enumerate(texts, start=1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
            elif number < len(texts):
                raise CheckpointError(
                    f"Line {number} of '{self.path}' is not a record of metrics: {text[:80]!r}. Delete the line, or "
                    "move the file away."
                )
        return lines

    def truncate(self, step: int) -> None:
        """Drops the lines after `step`, which a run that goes on from there writes again."""
        if not self.path.exists():
            return
        kept = [line for line in self.read() if line["step"] <= step]
        with _writing(self.path):
            write_text("".join(json.dumps(line) + "\n" for line in kept), self.path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says in a sentence what a full disk, or a folder that cannot be written to, did."""
    try:
        yield
    except OSError as reason:
        raise CheckpointError(
            f"Could not write '{path}': {reason}. Free some space, or make the folder writable, and continue with "
            "resume_from_checkpoint=latest."
        ) from reason
