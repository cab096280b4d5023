"""Train an image tokenizer.

    hf-vq train-tokenizer --config noto_emoji_32 --output_dir out

The command line can override every field of the recipe, including the model's (`--num_codes 512`); `hf-vq recipes`
lists the recipes. To train on your own images: `--dataset path/to/folder`. To continue a stopped run:
`--resume_from_checkpoint latest`. To train on eight GPUs: `--num_processes 8`. `accelerate launch -m
hf_vq.commands.train_tokenizer` works as well.
"""

from __future__ import annotations

from transformers import set_seed

from hf_vq.commands.launching import read_or_launch
from hf_vq.commands.running import command, errors_in_a_line
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.image_data import build_image_datasets
from hf_vq.training.signals import stop_signals
from hf_vq.training.tokenizer import TokenizerTrainer
from hf_vq.training.trainer import train_to_the_end


@command
def main(words: list[str]) -> None:
    """Parses the command line, builds data and model, and trains."""
    with errors_in_a_line():
        args, model_fields = read_or_launch("train-tokenizer", TokenizerTrainingArguments, VQConfig, words, __doc__)
    with stop_signals():
        with errors_in_a_line():
            config = VQConfig(**model_fields)
            set_seed(args.seed)
            train_images, eval_images = build_image_datasets(args, config)
            processor = VQImageProcessor.for_config(config)
            trainer = TokenizerTrainer(VQModel(config), args, train_images, eval_images, processor)
        train_to_the_end(trainer)


if __name__ == "__main__":
    main()
