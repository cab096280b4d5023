"""Train an image tokenizer.

    hf-vq train-tokenizer --config noto_emoji_32 --output_dir out

The command line can override every field of the recipe, including the model's (`--num_codes 512`); `hf-vq recipes`
lists the recipes. To train on your own images: `--dataset path/to/folder`. To continue a stopped run, or a
finished one with a larger `--max_steps`: `--resume_from_checkpoint latest --output_dir out`. To fine-tune a tokenizer:
`--init_from FOLDER_OR_HUB_ID`. To train on eight GPUs: `--num_processes 8`. `accelerate launch -m
hf_vq.commands.train_tokenizer` works as well.
"""

from __future__ import annotations

from transformers import set_seed

from hf_vq.commands.running import command, errors_in_a_line
from hf_vq.commands.runs import model_config, read_training_command
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.training.arguments import TokenizerTrainingArguments
from hf_vq.training.image_data import build_image_datasets
from hf_vq.training.signals import stop_signals
from hf_vq.training.starting_point import load_starting_point
from hf_vq.training.tokenizer import TokenizerTrainer
from hf_vq.training.trainer import train_to_the_end


@command
def main(words: list[str]) -> None:
    """Parses the command line, builds data and model, and trains."""
    with errors_in_a_line():
        args, model_fields, goes_on, processor = read_training_command(
            "train-tokenizer", TokenizerTrainingArguments, VQConfig, words, __doc__
        )
    with stop_signals():
        with errors_in_a_line():
            point = None if goes_on else load_starting_point(args, "tokenizer")
            config = model_config(VQConfig, model_fields, goes_on) if point is None else point.config(model_fields)
            set_seed(args.seed)
            train_images, eval_images = build_image_datasets(args, config)
            if point is not None:
                processor = point.fitted_processor(config)
            model = VQModel(config) if point is None else point.fit(VQModel(config))
            trainer = TokenizerTrainer(
                model, args, train_images, eval_images, processor or VQImageProcessor.for_config(config)
            )
            if point is not None:
                trainer.start_from(point)
        train_to_the_end(trainer)


if __name__ == "__main__":
    main()
