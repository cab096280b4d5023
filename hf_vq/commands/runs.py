"""What a training command is told: by its words, its recipe, and the run that it continues."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers import PreTrainedConfig

from hf_vq.commands.help import model_field_names
from hf_vq.commands.launching import read_or_launch, take_launcher_words
from hf_vq.commands.parsing import given_fields
from hf_vq.training.arguments import AUTO_SPLIT, NO_SPLIT, BaseTrainingArguments
from hf_vq.training.checkpoints import CheckpointError
from hf_vq.training.run_folder import find_settings, require_free
from hf_vq.training.settings import require_allowed, saved_arguments

logger = logging.getLogger(__name__)

Arguments = TypeVar("Arguments", bound=BaseTrainingArguments)

# What a call says for itself, whatever the run was told before.
_OF_THE_CALL = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "allow_changes"}


class Told(NamedTuple):
    """What a run is told.

    Attributes:
        args: The training arguments.
        model_fields: Keyword arguments for the model's configuration.
        goes_on: Whether the weights are those of a checkpoint.
    """

    args: Any
    model_fields: dict[str, Any]
    goes_on: bool


def read_training_command(
    name: str,
    arguments_class: type[Arguments],
    config_class: type[PreTrainedConfig],
    words: list[str],
    description: str | None,
) -> Told:
    """Reads the words of a training command, and checks them against its folder before anything is loaded.

    A run that is continued knows its settings. What is given again must agree with them, be free to change, or come
    with `--allow_changes`. Arguments as for `read_or_launch`.

    Raises:
        ValueError: For a field that does not exist or a value of the wrong type; or the run to be continued has other
            settings, or there is no such checkpoint.
        OutputFolderInUseError: The folder holds a run, and this is another one.
        SystemExit: After the processes that the words ask for have ended.
    """
    told = read_or_launch(name, arguments_class, config_class, words, description)
    try:
        return _with_those_of_the_run(*told, config_class, take_launcher_words(words)[1])
    except CheckpointError as error:
        raise ValueError(error) from error


def _with_those_of_the_run(
    args: Any, model_fields: dict[str, Any], config_class: type[PreTrainedConfig], words: list[str]
) -> Told:
    """What the words say, completed by what the run to be continued says."""
    arguments_class = type(args)
    given, given_model = given_fields(arguments_class, config_class, words)
    folder = Path(args.output_dir)
    if args.resume_from_checkpoint is None:
        require_free(folder, args.overwrite_output_dir)
        if args.init_from is not None:
            left_out = model_fields.keys() - given_model
            if left_out:
                logger.info("the model is that of '%s': the recipe's model fields are not used", args.init_from)
            model_fields = {name: model_fields[name] for name in given_model}
        return Told(args, model_fields, False)
    found = find_settings(folder, args.resume_from_checkpoint)
    if found is None:
        return Told(args, model_fields, False)
    start, saved = found
    before = saved_arguments(saved, arguments_class)
    if saved["arguments"].get("eval_split", AUTO_SPLIT) is None and args.eval_split == NO_SPLIT:
        given -= {"eval_split"}  # version 0.1.0 said so for a part of the training split
    now = {name: value for name, value in args.to_dict().items() if name in given | _OF_THE_CALL}
    known = {field.name for field in dataclasses.fields(arguments_class)}
    args = arguments_class(**{name: value for name, value in (before | now).items() if name in known})
    fixed = args.fixed_on_resume()
    differing = {name: (before.get(name), value) for name, value in fixed.items() if before.get(name) != value}
    model = {name: value for name, value in saved["model"].items() if name in model_field_names(config_class)}
    model.pop("vq_config", None)  # a generator's tokenizer is loaded for itself
    if args.init_from is not None:
        model_fields = {name: model_fields[name] for name in given_model}
    for name in model_fields:
        # What a name stands for, such as a backbone's, is compared when the model is there.
        if name in model and not isinstance(model[name], dict) and model[name] != model_fields[name]:
            differing[f"model.{name}"] = (model[name], model_fields[name])
    require_allowed(start, saved["step"], differing, args)
    return Told(args, model | model_fields, start != folder)
