"""Measure tokenizers or generators on a data set of images. Several models are shown side by side.

    hf-vq evaluate --compare user/vq-a user/vq-b --dataset noto-emoji-32 --split test

Models are folders or Hub ids (`user/name@revision` works, too). In `--output_dir`, evaluation.md has a table with the
protocol of its numbers, evaluation.tex and evaluation.csv have it for papers and spreadsheets, evaluation.json for
programs, and evaluation.png has reconstructions or samples. FID, KID and the Inception Score need
`--features inception` and `pip install 'hf_vq[inception]'`. Several processes (`--num_processes 8`) give
the same numbers.
"""

from __future__ import annotations

from hf_vq.commands.launching import read_or_launch
from hf_vq.commands.running import command, errors_in_a_line, is_main_process
from hf_vq.evaluation.arguments import EvaluationArguments
from hf_vq.evaluation.evaluator import evaluate


@command
def main(words: list[str]) -> None:
    """Parses the command line, measures, and prints the table."""
    with errors_in_a_line():
        args, _ = read_or_launch("evaluate", EvaluationArguments, None, words, __doc__)
        report = evaluate(args)
    if is_main_process():
        print(f"{report.to_markdown()}\nWritten to {args.output_dir}")


if __name__ == "__main__":
    main()
