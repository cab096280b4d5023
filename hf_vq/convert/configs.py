"""Reads the configuration beside a file of weights: a `config.json`, or the YAML of taming-transformers' family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_vq.convert.reading import read_json


def read_config(file: Path) -> dict[str, Any]:
    """Reads what stands beside a file of weights.

    Args:
        file: The file of weights. `config.json`, a YAML file of the same name, `model.yaml` and `config.yaml` are
            looked for in its folder, the last two also in the folder `configs` beside that one, in this order.

    Returns:
        The configuration, empty if there is none. Of the whole Janus, or of a whole taming-transformers run, it is the
        tokenizer's. Of the latter these are the fields of `ddconfig` and of the model, and the class as `Name`.

    Raises:
        ValueError: If the file is damaged or holds something else. The message names it.
    """
    if (path := file.with_name("config.json")).is_file():
        config = read_json(path)
        config = config.get("vq_config", config)  # in the configuration of the whole Janus
        if not isinstance(config, dict):
            raise ValueError(f"The 'vq_config' of {path.name!r} must be a dictionary, got {config!r}.")
        return config
    folders = (file.parent, file.resolve().parent.with_name("configs"))
    general = [folder / name for folder in folders for name in ("model.yaml", "config.yaml")]
    for path in (file.with_suffix(".yaml"), *general):
        if path.is_file():
            return _of_a_run(_read_yaml(path))
    return {}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name!r} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name!r} cannot be read: it holds a {type(content).__name__}, not a dictionary.")
    return content


def _of_a_run(content: Mapping[str, Any]) -> dict[str, Any]:
    model = _dictionary(content.get("model"))
    fields = _dictionary(model.get("params", model.get("init_args")))
    kind = str(model.get("target", model.get("class_path", ""))).rpartition(".")[2]
    return {**fields, **_dictionary(fields.get("ddconfig")), **({"Name": kind} if kind else {})}


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
