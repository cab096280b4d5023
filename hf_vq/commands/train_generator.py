"""Train a generator of images, a MaskGIT, on image tokens.

    accelerate launch scripts/train_tokenizer.py --config noto_emoji_32 --output_dir vq
    accelerate launch scripts/tokenize_dataset.py --tokenizer vq/final --dataset noto-emoji-32 --output_dir tokens
    accelerate launch scripts/train_generator.py --config noto_emoji_32_maskgit \\
        --tokens tokens --tokenizer vq/final --output_dir out

Tokens and tokenizer are folders or Hub ids. The tokens must have been made by that tokenizer. The command line can
override every field of the recipe, including the model's (`--hidden_size 512`). To continue a stopped run:
`--resume_from_checkpoint latest`. `out/final` is a complete Hub repository with the tokenizer inside. To start two
processes on a machine without GPUs: `ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 ...`, or
torchrun.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed

from hf_vq.commands.parsing import parse_command_line
from hf_vq.modeling.configuration_maskgit import MaskGitConfig
from hf_vq.modeling.modeling_maskgit import MaskGitModel
from hf_vq.training.arguments import GeneratorTrainingArguments
from hf_vq.training.generator import GeneratorTrainer
from hf_vq.training.generator_data import build_token_datasets, generator_config, load_run_tokenizer
from hf_vq.training.trainer import train_to_the_end


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line, loads tokenizer and tokens, builds the model, and trains."""
    words = sys.argv[1:] if argv is None else argv
    logging.basicConfig(
        format="%(message)s", level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    )
    try:
        args, model_fields = parse_command_line(GeneratorTrainingArguments, MaskGitConfig, words, __doc__)
        tokenizer, processor = load_run_tokenizer(args)
        train_tokens, eval_tokens = build_token_datasets(args, tokenizer)
        config = generator_config(tokenizer, train_tokens, model_fields)
        set_seed(args.seed)
        model = MaskGitModel(config, tokenizer=tokenizer)
        trainer = GeneratorTrainer(model, args, train_tokens, eval_tokens, processor)
    except (ValueError, OSError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from None
    train_to_the_end(trainer)


if __name__ == "__main__":
    main()
