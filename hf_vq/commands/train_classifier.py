"""Train an image classifier with a quantized layer.

    hf-vq train-classifier --config noto_emoji_32_classifier --output_dir out

The command line can override every field of the recipe, including the model's (`--backbone_config vit_tiny`,
`--quantized_layer 3`). To train on your own images: `--dataset path/to/folder`, with a sub-folder for each class. To
continue a stopped run: `--resume_from_checkpoint latest`. To train on eight GPUs: `--num_processes 8`. `accelerate
launch -m hf_vq.commands.train_classifier` works as well.
"""

from __future__ import annotations

from transformers import set_seed

from hf_vq.commands.running import command, errors_in_a_line
from hf_vq.commands.runs import model_config, read_training_command
from hf_vq.modeling.configuration_vq_classifier import VQImageClassificationConfig
from hf_vq.modeling.modeling_vq_classifier import VQModelForImageClassification
from hf_vq.training.arguments import ClassifierTrainingArguments
from hf_vq.training.classifier import ClassifierTrainer
from hf_vq.training.classifier_data import classifier_config
from hf_vq.training.image_data import build_image_datasets
from hf_vq.training.signals import stop_signals
from hf_vq.training.starting_point import load_starting_point
from hf_vq.training.trainer import train_to_the_end


@command
def main(words: list[str]) -> None:
    """Parses the command line, builds data and model, and trains."""
    with errors_in_a_line():
        args, model_fields, goes_on, processor = read_training_command(
            "train-classifier", ClassifierTrainingArguments, VQImageClassificationConfig, words, __doc__
        )
    with stop_signals():
        with errors_in_a_line():
            point = None if goes_on else load_starting_point(args, "classifier")
            if point is None:
                config = model_config(VQImageClassificationConfig, model_fields, goes_on)
            else:
                config = point.config(model_fields)
            train_images, eval_images = build_image_datasets(args, config)
            config = classifier_config(config, train_images)
            set_seed(args.seed)
            model = VQModelForImageClassification(config)
            if point is not None:
                model, processor = point.fit(model), point.fitted_processor(config)
            trainer = ClassifierTrainer(model, args, train_images, eval_images, processor)
            if point is not None:
                trainer.start_from(point)
        train_to_the_end(trainer)


if __name__ == "__main__":
    main()
