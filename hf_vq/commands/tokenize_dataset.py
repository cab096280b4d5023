"""Tokenize an image data set: parquet files of image tokens, with a manifest that says what made them.

    hf-vq tokenize --tokenizer out/final --dataset noto-emoji-32 --output_dir tokens

The data set is a folder of images, parquet or tar files, a Hub id, or the sample. All its splits are tokenized. If a
run was stopped, give the same command again, and it continues. Any number of processes (`--num_processes 8`) write the
same files. `accelerate launch -m hf_vq.commands.tokenize_dataset` works as well.
"""

from __future__ import annotations

from hf_vq.commands.launching import read_or_launch
from hf_vq.commands.running import command, errors_in_a_line
from hf_vq.data.tokenize import TokenizationArguments, tokenize_dataset


@command
def main(words: list[str]) -> None:
    """Parses the command line and tokenizes the data set."""
    with errors_in_a_line():
        args, _ = read_or_launch("tokenize", TokenizationArguments, None, words, __doc__)
        tokenize_dataset(args)


if __name__ == "__main__":
    main()
