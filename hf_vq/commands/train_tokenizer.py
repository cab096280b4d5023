"""Train an image tokenizer.

    accelerate launch scripts/train_tokenizer.py --config noto_emoji_32 --output_dir out

The command line can override every field of the recipe, including the model's (`--num_codes 512`). To train on your
own images: `--dataset path/to/folder`. To continue a stopped run: `--resume_from_checkpoint latest`. To start two
processes on a machine without GPUs: `accelerate launch --multi_gpu --num_processes 2 ...`, or torchrun.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed

from hf_vq.commands.parsing import parse_command_line
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.image_data import build_image_datasets
from hf_vq.training.tokenizer import TokenizerTrainer
from hf_vq.training.trainer import train_to_the_end


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line, builds data and model, and trains."""
    words = sys.argv[1:] if argv is None else argv
    logging.basicConfig(
        format="%(message)s", level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    )
    try:
        args, model_fields = parse_command_line(TokenizerTrainingArguments, VQConfig, words, __doc__)
        config = VQConfig(**model_fields)
        set_seed(args.seed)
        train_images, eval_images = build_image_datasets(args, config)
        processor = VQImageProcessor.for_config(config)
        trainer = TokenizerTrainer(VQModel(config), args, train_images, eval_images, processor)
    except (ValueError, OSError, ImportError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from None
    train_to_the_end(trainer)


if __name__ == "__main__":
    main()
