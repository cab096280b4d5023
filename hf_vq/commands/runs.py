"""What a training command is told: by its words, its recipe, and the run that it continues."""

from __future__ import annotations

import dataclasses
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers import PreTrainedConfig

from hf_vq.commands.help import model_field_names
from hf_vq.commands.launching import read_or_launch, take_launcher_words
from hf_vq.commands.parsing import given_fields
from hf_vq.data.sources import require_place
from hf_vq.hub.repository import require_findable
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.training.base_arguments import AUTO_SPLIT, NO_SPLIT, BaseTrainingArguments
from hf_vq.training.checkpoints import CheckpointError
from hf_vq.training.run_folder import find_settings, require_free
from hf_vq.training.settings import free_batches, require_allowed, saved_arguments
from hf_vq.utils.processes import on_every_process, on_main_process, processes_of_run, require_same_places
from hf_vq.utils.text import DATA_PREFIX, HUB_PREFIX

logger = logging.getLogger(__name__)

Arguments = TypeVar("Arguments", bound=BaseTrainingArguments)
Config = TypeVar("Config", bound=PreTrainedConfig)

# What a call says for itself, whatever the run was told before.
_OF_THE_CALL = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "allow_changes", "ddp_timeout"}


class Told(NamedTuple):
    """What a run is told.

    Attributes:
        args: The training arguments.
        model_fields: Keyword arguments for the model's configuration.
        goes_on: Whether the weights are those of a checkpoint.
        image_processor: That of the run that goes on; None for a new one, or if its checkpoint has none.
    """

    args: Any
    model_fields: dict[str, Any]
    goes_on: bool
    image_processor: VQImageProcessor | None = None


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
        FileNotFoundError: What it is told to read is not there.
        OutputFolderInUseError: The folder holds a run, and this is another one.
        SystemExit: After the processes that the words ask for have ended.
    """
    args, model_fields = read_or_launch(name, arguments_class, config_class, words, description)
    # Alone, a process joins nobody yet: the run that it continues may compute elsewhere than the words say.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    state = processes_of_run(args.use_cpu, args.ddp_timeout) if several else None
    words = take_launcher_words(words)[1]
    look = partial(_look_into_folder, args)
    try:
        found = look() if state is None else on_main_process(look, state)
        known = _with_those_of_the_run(args, model_fields, found, config_class, words)
    except CheckpointError as error:
        raise ValueError(error) from error
    if state is None:
        _require_places(known)
        return known
    if known.args.use_cpu and state.device.type != "cpu":
        raise ValueError("The run to be continued computed on CPUs. Give --use_cpu to go on as it was.")
    places = [getattr(known.args, name, None) for name in ("init_from", "tokenizer", "tokens", "dataset")]
    require_same_places([None if known.goes_on else places[0], *places[1:]], state)
    on_every_process(lambda: _require_places(known), state)
    return known


def _look_into_folder(args: BaseTrainingArguments) -> tuple[Path, dict[str, Any]] | None:
    """The settings of the run to be continued; None for a new one, which finds its folder free."""
    if args.resume_from_checkpoint is not None:
        return find_settings(Path(args.output_dir), args.resume_from_checkpoint)
    require_free(Path(args.output_dir), args.overwrite_output_dir)
    return None


def model_config(config_class: type[Config], fields: dict[str, Any], goes_on: bool) -> Config:
    """The configuration of a run's model; what a run that goes on says of itself is taken as it is."""
    return config_class.from_dict(fields) if goes_on else config_class(**fields)


def _require_places(told: Told) -> None:
    """Refuses the name of a folder that is not there before anything else is loaded, from the Hub or from here."""
    init_from = None if told.goes_on else told.args.init_from
    tokenizer, tokens = getattr(told.args, "tokenizer", None), getattr(told.args, "tokens", None)
    for name, what, prefix in (
        (init_from, "no model", HUB_PREFIX),
        (tokenizer, "no tokenizer", HUB_PREFIX),
        (tokens, "no token data set", DATA_PREFIX),
    ):
        if name is not None:
            require_findable(name, what, prefix)
    require_place(getattr(told.args, "dataset", None))


def _with_those_of_the_run(
    args: Any,
    model_fields: dict[str, Any],
    found: tuple[Path, dict[str, Any]] | None,
    config_class: type[PreTrainedConfig],
    words: list[str],
) -> Told:
    """What the words say, completed by what the run to be continued says."""
    arguments_class = type(args)
    given, given_model = given_fields(arguments_class, config_class, words)
    folder = Path(args.output_dir)
    if args.resume_from_checkpoint is None:
        if args.init_from is not None:
            left_out = model_fields.keys() - given_model
            if left_out:
                logger.info("the model is that of '%s': the recipe's model fields are not used", args.init_from)
            model_fields = {name: model_fields[name] for name in given_model}
        return Told(args, model_fields, False)
    if found is None and getattr(args, "dataset", None) is getattr(args, "tokens", None) is None:
        raise ValueError(
            f"There is no run in '{folder}' to go on with. Check output_dir; the words of a new run begin one there."
        )
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
    current = {"num_processes": int(os.environ.get("WORLD_SIZE", "1")), "arguments": args.to_dict()}
    free = free_batches(saved, before, current)
    differing = {
        name: (before.get(name), value)
        for name, value in fixed.items()
        if before.get(name) != value and name not in free
    }
    model = {name: value for name, value in saved["model"].items() if name in model_field_names(config_class)}
    model.pop("vq_config", None)  # a generator's tokenizer is loaded for itself
    if args.init_from is not None:
        model_fields = {name: model_fields[name] for name in given_model}
    for name in model_fields:
        # What a name stands for, such as a backbone's, is compared when the model is there.
        if name in model and not isinstance(model[name], dict) and model[name] != model_fields[name]:
            differing[f"model.{name}"] = (model[name], model_fields[name])
    require_allowed(start, saved["step"], differing, args)
    settings = saved.get("image_processor")
    processor = VQImageProcessor.from_dict(settings) if settings and start != folder else None
    return Told(args, model | model_fields, start != folder, processor)
