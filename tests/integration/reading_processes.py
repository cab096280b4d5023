"""What each process runs for `test_reading_processes.py`: finds the images of a run, on one node or on several."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from hf_vq import VQConfig
from hf_vq.training import image_data
from hf_vq.training.arguments import TokenizerTrainingArguments


def main(seconds: float, answer: Path, datasets: list[str]) -> None:
    """Loads data sets, each of which takes so many seconds, and writes down what is in them, or what went wrong."""
    load, listed = image_data.load_images, []

    def slowly(*arguments: Any, **options: Any) -> Any:
        listed.append(os.getpid())
        time.sleep(seconds)
        return load(*arguments, **options)

    image_data.load_images = slowly
    found: list[Any] = []
    for dataset in datasets:
        args = TokenizerTrainingArguments(
            output_dir="out", dataset=dataset, use_cpu=True, ddp_timeout=2, eval_fraction=0
        )
        try:
            train, _ = image_data.build_image_datasets(args, VQConfig(image_size=16))
            found.append([os.path.basename(row["image"]["path"]) for row in train.source])
        except (OSError, ValueError) as error:
            found.append(str(error))
    answer.write_text(json.dumps({"found": found, "listed": len(listed)}))


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
