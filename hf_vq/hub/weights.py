"""The files of a repository's weights."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

from hf_vq.hub.repository import HubError, fetch_file

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def fetch_weights(repo_id: str, commit: str, token: str | bool | None, unverified: list[str]) -> list[Path]:
    """Fetches the weights of a commit, safetensors and their index if they are cut, verified; see `fetch_file`."""

    def fetch(name: str) -> Path:
        return fetch_file(repo_id, name, commit, token, unverified)

    with suppress(FileNotFoundError):
        return [fetch(WEIGHTS_FILE)]
    try:
        path = fetch(INDEX_FILE)
        try:
            names = sorted(set(json.loads(path.read_text(encoding="utf-8")).get("weight_map", {}).values()))
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise HubError(
                f"The {INDEX_FILE} of '{repo_id}' at {commit} cannot be read: {error}. Tell the repository's owner."
            ) from error
        strange = [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", str(name))]
        if strange or not names:
            raise HubError(
                f"The {INDEX_FILE} of '{repo_id}' at {commit} names {strange[0] if strange else 'no weights'}; only "
                "safetensors files beside it are read. Tell the repository's owner."
            )
        return [path, *map(fetch, names)]
    except FileNotFoundError as error:
        raise HubError(
            f"'{repo_id}' at {commit} has no complete safetensors weights ({error} is missing); nothing else is read."
        ) from None
