"""Train a generator of images, a MaskGIT, on image tokens.

    hf-vq train-tokenizer --config noto_emoji_32 --output_dir vq
    hf-vq tokenize --tokenizer vq/final --dataset noto-emoji-32 --output_dir tokens
    hf-vq train-generator --config noto_emoji_32_maskgit --tokens tokens --tokenizer vq/final --output_dir out

Tokens and tokenizer are folders or Hub ids. The tokens must have been made by that tokenizer. The command line can
override every field of the recipe, including the model's (`--hidden_size 512`). To continue a stopped run:
`--resume_from_checkpoint latest`. `out/final` is a complete Hub repository with the tokenizer inside. To train on
eight GPUs: `--num_processes 8`. `accelerate launch -m hf_vq.commands.train_generator` works as well.
"""

from __future__ import annotations

from transformers import set_seed

from hf_vq.commands.running import command, errors_in_a_line
from hf_vq.commands.runs import read_training_command
from hf_vq.modeling.configuration_maskgit import MaskGitConfig
from hf_vq.modeling.modeling_maskgit import MaskGitModel
from hf_vq.training.arguments import GeneratorTrainingArguments
from hf_vq.training.generator import GeneratorTrainer
from hf_vq.training.generator_data import build_token_datasets, generator_config, load_run_tokenizer
from hf_vq.training.signals import stop_signals
from hf_vq.training.starting_point import load_starting_point
from hf_vq.training.trainer import train_to_the_end


@command
def main(words: list[str]) -> None:
    """Parses the command line, loads tokenizer and tokens, builds the model, and trains."""
    with errors_in_a_line():
        args, model_fields, goes_on, _ = read_training_command(
            "train-generator", GeneratorTrainingArguments, MaskGitConfig, words, __doc__
        )
    with stop_signals():
        with errors_in_a_line():
            # A generator that is fine-tuned brings its tokenizer along.
            point = None if goes_on and args.tokenizer else load_starting_point(args, "generator")
            tokenizer, processor = load_run_tokenizer(args) if point is None else point.tokenizer(args)
            train_tokens, eval_tokens = build_token_datasets(args, tokenizer)
            start = None if goes_on else point
            if start is not None:
                model_fields = start.own_fields() | model_fields
            config = generator_config(tokenizer, train_tokens, model_fields)
            set_seed(args.seed)
            model = MaskGitModel(config, tokenizer=tokenizer)
            model = model if start is None else start.fit(model)
            trainer = GeneratorTrainer(model, args, train_tokens, eval_tokens, processor)
            if start is not None:
                trainer.start_from(start)
        train_to_the_end(trainer)


if __name__ == "__main__":
    main()
