"""Train an image classifier with a quantized layer.

    accelerate launch scripts/train_classifier.py --config noto_emoji_32_classifier \\
        --output_dir out

The command line can override every field of the recipe, including the model's (`--backbone_config vit_tiny`,
`--quantized_layer 3`). To train on your own images: `--dataset path/to/folder`, with a sub-folder for each class. To
continue a stopped run: `--resume_from_checkpoint latest`. To start two processes on a machine without GPUs:
`ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 ...`, or torchrun.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed

from hf_vq.commands.parsing import parse_command_line
from hf_vq.modeling.configuration_vq_classifier import VQImageClassificationConfig
from hf_vq.modeling.modeling_vq_classifier import VQModelForImageClassification
from hf_vq.training.arguments import ClassifierTrainingArguments
from hf_vq.training.classifier import ClassifierTrainer
from hf_vq.training.classifier_data import classifier_config
from hf_vq.training.image_data import build_image_datasets
from hf_vq.training.trainer import train_to_the_end


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line, builds data and model, and trains."""
    words = sys.argv[1:] if argv is None else argv
    logging.basicConfig(
        format="%(message)s", level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    )
    try:
        args, model_fields = parse_command_line(
            ClassifierTrainingArguments, VQImageClassificationConfig, words, __doc__
        )
        config = VQImageClassificationConfig(**model_fields)
        train_images, eval_images = build_image_datasets(args, config)
        config = classifier_config(config, train_images)
        set_seed(args.seed)
        model = VQModelForImageClassification(config)
        trainer = ClassifierTrainer(model, args, train_images, eval_images)
    except (ValueError, OSError, ImportError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from None
    train_to_the_end(trainer)


if __name__ == "__main__":
    main()
