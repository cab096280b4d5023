"""A trainer's whole state to a checkpoint folder and back.

checkpoint-N/
  config.json, model.safetensors    the weights; the folder loads with `AutoModel.from_pretrained`
  ema.safetensors                   their average, if one is kept
  training_state.pt                 optimizers, schedules, other networks, quantizers
  rank_states.pt                    of each process: random numbers, log window, place in a stream
  trainer_state.json                step, epoch and settings; written last
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hf_vq.modeling.base_quantizer_vq import get_vq_layers
from hf_vq.modeling.version_vq import VERSION_KEY, __version__
from hf_vq.training import checkpoints as ckpt
from hf_vq.training.order import is_stream
from hf_vq.training.run_folder import differing_settings, random_state
from hf_vq.utils.files import atomic_folder, free_space, write_json

if TYPE_CHECKING:
    from hf_vq.training.trainer import BaseTrainer

logger = logging.getLogger(__name__)

EMA_FILE = "ema.safetensors"
TRAINING_STATE_FILE = "training_state.pt"
RANK_STATES_FILE = "rank_states.pt"
MODEL_NETWORK = "model"
# Written by save_pretrained or by the version at hand, without any meaning for a run.
_IGNORED_CONFIG = {
    VERSION_KEY, "transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures", "auto_map",
    "custom_pipelines",
}  # fmt: skip


def save_checkpoint(trainer: BaseTrainer) -> Path:
    """Writes `checkpoint-N` of the current step in one go, then removes the oldest ones beyond the limit.

    Raises:
        CheckpointError: On all ranks, if it could not be written. Older checkpoints are untouched.
    """
    trainer.average_batch_norm()
    folder = trainer.output_dir / f"checkpoint-{trainer.step}"
    # The main process writes for all: one that fails alone would leave the others waiting.
    rank_states = gather_object([_rank_state(trainer)])
    error = None
    if trainer.accelerator.is_main_process:
        try:
            with atomic_folder(folder) as temporary:
                _write(trainer, temporary, rank_states)
            ckpt.rotate_checkpoints(trainer.output_dir, trainer.args.save_total_limit)
        except Exception as reason:  # a full disk shows as OSError, RuntimeError or SafetensorError
            error = _save_error(trainer.output_dir, folder, reason)
            logger.debug("saving failed", exc_info=True)
    trainer.raise_together(error)
    return folder


def load_checkpoint(trainer: BaseTrainer, folder: Path) -> dict[str, Any]:
    """Puts a trainer into the state that a checkpoint holds.

    Returns:
        This process's random state, to be set when everything else is done.

    Raises:
        CheckpointError: The checkpoint is of a run with other settings.
    """
    state = ckpt.read_state(folder)
    _require_same_settings(trainer, folder, state)
    ckpt.load_weights(trainer.model, folder / ckpt.WEIGHTS_FILE)
    training = ckpt.load_object(folder / TRAINING_STATE_FILE)
    if trainer.ema is not None:
        ckpt.load_weights(trainer.ema.module, folder / EMA_FILE)
        trainer.ema.updates = training["ema_updates"]
    for name, network in trainer.networks.items():
        if name != MODEL_NETWORK:
            network.load_state_dict(training["networks"][name])
        trainer.optimizers[name].load_state_dict(training["optimizers"][name])
        trainer.schedules[name].load_state_dict(training["schedules"][name])
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(training["scaler"])
    _load_quantizer_states(trainer.model, training["quantizers"])
    if trainer.ema is not None:
        trainer.ema.copy_buffers(trainer.model)
    trainer.load_extra_state(training["extra"])
    trainer.step = state["step"]
    trainer.eval_metrics = state["eval_metrics"]
    mine = ckpt.load_object(folder / RANK_STATES_FILE)[trainer.accelerator.process_index]
    trainer.window.load_state_dict(mine["window"], trainer.accelerator.device)
    trainer.stream_state = mine["stream"]
    trainer.epoch = mine["stream_epoch"]
    logger.info("continuing from '%s'", folder)
    return mine["random"]


def _write(trainer: BaseTrainer, folder: Path, rank_states: list[dict[str, Any]]) -> None:
    # Not save_pretrained, which would copy the code that defines the configuration.
    (folder / "config.json").write_text(trainer.model.config.to_json_string(), encoding="utf-8")
    ckpt.save_weights(trainer.model.state_dict(), folder / ckpt.WEIGHTS_FILE)
    if trainer.ema is not None:
        ckpt.save_weights(trainer.ema.module.state_dict(), folder / EMA_FILE)
    scaler = trainer.accelerator.scaler
    training = {
        "optimizers": {name: optimizer.state_dict() for name, optimizer in trainer.optimizers.items()},
        "schedules": {name: schedule.state_dict() for name, schedule in trainer.schedules.items()},
        "networks": {name: net.state_dict() for name, net in trainer.networks.items() if name != MODEL_NETWORK},
        "quantizers": [layer.training_state() for layer in get_vq_layers(trainer.model)],
        "ema_updates": 0 if trainer.ema is None else trainer.ema.updates,
        "scaler": None if scaler is None else scaler.state_dict(),
        "extra": trainer.extra_state(),
    }
    ckpt.save_object(training, folder / TRAINING_STATE_FILE)
    ckpt.save_object(rank_states, folder / RANK_STATES_FILE)
    state = {
        "step": trainer.step,
        "epoch": trainer.current_epoch(),
        "num_train_images": None if is_stream(trainer.train_dataset) else len(trainer.train_dataset),
        "eval_metrics": trainer.eval_metrics,
        "versions": {"hf_vq": __version__, "torch": torch.__version__},
        **trainer.settings(),
    }
    write_json(state, folder / ckpt.STATE_FILE)


def _rank_state(trainer: BaseTrainer) -> dict[str, Any]:
    stream = is_stream(trainer.train_dataset) and hasattr(trainer.train_dataset, "state_dict")
    return {
        "random": random_state(),
        "window": trainer.window.state_dict(),
        "stream": trainer.train_dataset.state_dict() if stream else None,
        "stream_epoch": trainer.epoch,
    }


def _load_quantizer_states(model: nn.Module, states: list[dict[str, Tensor]]) -> None:
    for layer, state in zip(get_vq_layers(model), states, strict=True):
        layer.load_training_state(state)


def _require_same_settings(trainer: BaseTrainer, folder: Path, state: dict[str, Any]) -> None:
    """Refuses a checkpoint whose run was another one, and shows in what."""
    now = trainer.settings()
    fixed = trainer.args.fixed_on_resume()
    saved_arguments = _argument_defaults(trainer.args) | state["arguments"]
    lines = differing_settings({name: saved_arguments.get(name) for name in fixed}, fixed)
    saved_model = _with_defaults(state["model"], trainer.model.config)
    lines += differing_settings(_meaningful(saved_model), _meaningful(now["model"]), prefix="model.")
    images = None if is_stream(trainer.train_dataset) else len(trainer.train_dataset)
    lines += differing_settings(
        {"num_processes": state["num_processes"], "num_train_images": state["num_train_images"]},
        {"num_processes": now["num_processes"], "num_train_images": images},
    )
    if lines:
        raise ckpt.CheckpointError(
            f"'{folder}' belongs to a run with other settings:\n  "
            + "\n  ".join(lines)
            + "\nGive the same settings to continue it, or start a new run in another output_dir."
        )


def _argument_defaults(args: Any) -> dict[str, Any]:
    """What arguments that a checkpoint does not know stand for."""
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(args):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return defaults


def _with_defaults(saved: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """A checkpoint's configuration, and those within it, with the fields that only later versions have.

    Such a field counts as its default. Fields of a generator's tokenizer count as what they are now: it is frozen, the
    hash of its weights is compared, and what its own configuration lacked was found when it was loaded.
    """
    defaults = json.loads(json.dumps(type(config)().to_dict()))
    completed = {**{name: defaults[name] for name in config.to_dict() if name in defaults}, **saved}
    for name, value in saved.items():
        inner = getattr(config, name, None)
        if isinstance(value, dict) and isinstance(inner, PreTrainedConfig):
            completed[name] = inner.to_dict() | value if name == "vq_config" else _with_defaults(value, inner)
    return completed


def _meaningful(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, and those within it, without what has no influence on a run."""
    return {
        name: _meaningful(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in _IGNORED_CONFIG
    }


def _save_error(output_dir: Path, folder: Path, reason: Exception) -> str:
    checkpoints = ckpt.list_checkpoints(output_dir)
    last = f"The last good checkpoint is '{checkpoints[-1]}'" if checkpoints else "There is no older checkpoint"
    return (
        f"Could not save '{folder}': {reason}. {free_space(output_dir)}. {last}; what was half written is gone. "
        "Free some space, or lower save_total_limit, and continue with resume_from_checkpoint=latest."
    )
