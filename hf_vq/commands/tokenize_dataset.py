"""Tokenize an image data set. Writes parquet files of image tokens, with a manifest that says what made them.

    accelerate launch scripts/tokenize_dataset.py --tokenizer out/final --dataset noto-emoji-32 --output_dir tokens

The data set is a folder of images, parquet files, a Hub id, or the sample. All its splits are tokenized. If a run was
stopped, give the same command again, and it continues. Any number of processes write the same files. To start two on a
machine without GPUs: `ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 ...`, or torchrun.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from hf_vq.commands.parsing import parse_command_line
from hf_vq.data.tokenize import TokenizationArguments, tokenize_dataset


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and tokenizes the data set."""
    words = sys.argv[1:] if argv is None else argv
    logging.basicConfig(
        format="%(message)s", level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    )
    try:
        args, _ = parse_command_line(TokenizationArguments, None, words, __doc__)
        tokenize_dataset(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
