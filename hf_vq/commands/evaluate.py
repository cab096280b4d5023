"""Measure tokenizers or generators on a data set of images. Several models are shown side by side.

    python scripts/evaluate.py --compare user/vq-a user/vq-b --dataset noto-emoji-32 --split test

Models are folders or Hub ids (`user/name@revision` works, too). `--output_dir` gets three files: evaluation.md has a
table with the protocol of its numbers, evaluation.json has the same for programs, and evaluation.png has
reconstructions or samples. FID, KID and the Inception Score need `--features inception` and
`pip install 'hf_vq[inception]'`. Several processes, started by `accelerate launch` or torchrun, give the same numbers.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from hf_vq.commands.parsing import parse_command_line
from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.evaluation.evaluator import evaluate


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line, measures, and prints the table."""
    words = sys.argv[1:] if argv is None else argv
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.INFO if is_main else logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        args, _ = parse_command_line(EvaluationArguments, None, words, __doc__)
        report = evaluate(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    if is_main:
        print(f"{report.to_markdown()}\nWritten to {args.output_dir}")


if __name__ == "__main__":
    main()
