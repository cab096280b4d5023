"""A folder to a model of any kind: every way of loading one goes through `load_folder`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_vq.kinds import KINDS, Kind
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.pixel_range_vq import pixel_range_of, require_pixel_range
from hf_vq.modeling.version_vq import VERSION_KEY, check_version
from hf_vq.utils.text import shorten

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
SPLIT_FILE = "data_split.json"  # which images the run held out
STATE_FILE = "training_state.safetensors"  # what a run that starts from the model goes on with
OF_THE_RUN = (SPLIT_FILE, STATE_FILE)
"""What a run writes beside its model that is true of these weights alone."""


class BrokenModel(ValueError):
    """A folder holds no model of ours, or not all of one."""


def load_folder(folder: str | Path, name: str | Path, commit: str | None = None) -> tuple[Any, VQImageProcessor]:
    """Loads a model and its image processor; nothing is unpickled, and no code of the folder is run.

    Args:
        folder: Where configuration and weights are.
        name: What to call the model in messages.
        commit: Where the folder was fetched from, for messages as well.

    Returns:
        The model in eval mode, and its image processor (the default one where the folder has none).

    Raises:
        BrokenModel: It is of an unknown kind, its weights are damaged, too few or too many, or what its configuration
            or its image processor says makes no sense.
        OSError: There are no weights.
        ValueError: A newer version of this package made it, or its image processor has another range of pixels than
            its configuration.
    """
    kind: Any = kind_in(Path(folder) / CONFIG_FILE, name)
    where = f"'{name}' at {commit}" if commit else f"'{name}'"
    try:
        model, report = kind.model.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except (OSError, MemoryError):
        raise
    except (SafetensorError, RuntimeError) as error:
        raise BrokenModel(f"The weights of {where} are damaged or of another model: {error}.") from error
    except Exception as error:  # values of wrong types and sizes can raise anything
        raise BrokenModel(f"The {CONFIG_FILE} of {where} does not describe a model: {error!r}.") from error
    # Codes drawn at random in place of missing ones would look like a model that is merely bad.
    wrong = [
        f"{shorten(sorted(report[keys]))} {word}"
        for keys, word in (("missing_keys", "missing"), ("unexpected_keys", "unknown to this kind of model"))
        if report[keys]
    ]
    if wrong:
        raise BrokenModel(f"The weights of {where} are not whole: {'; '.join(wrong)}.")
    return model, _load_image_processor(Path(folder), model, name)


def require_model(folder: Path, what: str) -> None:
    """Raises a `FileNotFoundError` that says where a model would be, if a folder of a user has none."""
    if not (folder / CONFIG_FILE).is_file():
        inner = f". A finished run has its model in '{folder / 'final'}'" if (folder / "final").is_dir() else ""
        raise FileNotFoundError(f"no {what} in '{folder}': the folder has no {CONFIG_FILE}{inner}")


def kind_in(config_file: Path, name: str | Path) -> Kind:
    """The kind of the model that a `config.json` describes. Arguments and exceptions as for `load_folder`."""
    try:
        settings = json.loads(config_file.read_text(encoding="utf-8"))
        model_type = settings.get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BrokenModel(f"The {config_file.name} of '{name}' cannot be read: {error}.") from error
    if not isinstance(model_type, str) or model_type not in KINDS:
        found = model_type or settings.get("_class_name") or "unknown"
        architectures = settings.get("architectures")
        names = ", ".join(map(str, architectures)) if isinstance(architectures, list) else ""
        names = names or "no architecture named"
        raise BrokenModel(
            f"'{name}' is not a VQ model: its {config_file.name} describes a model of the type '{found}' ({names}), "
            f"not {', '.join(map(repr, KINDS))}."
        )
    check_version(settings.get(VERSION_KEY))
    return KINDS[model_type]


def _load_image_processor(folder: Path, model: Any, name: str | Path) -> VQImageProcessor:
    """The image processor beside a model's weights, or the one that its configuration implies."""
    if not (folder / PROCESSOR_FILE).is_file():
        return VQImageProcessor.for_config(model.config)
    try:
        processor = VQImageProcessor.from_pretrained(folder)
        pixel_range_of(processor)
    except MemoryError:
        raise
    except Exception as error:  # a file that is no JSON, or of wrong types, can raise anything
        raise BrokenModel(
            f"The {PROCESSOR_FILE} of '{name}' does not describe an image processor: {error!r}."
        ) from error
    require_pixel_range(processor, model.config, name)
    return processor
