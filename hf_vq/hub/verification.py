"""Whether a file of the cache is what the Hub has under its name."""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from hf_vq.hub.client import HubError, hub_api
from hf_vq.utils.files import atomic_file
from hf_vq.utils.hashes import file_sha256

logger = logging.getLogger(__name__)

_VERIFIED = "hf_vq_verified"  # a folder of the cache's repository, for the hashes that came from the Hub
_HASH = r"[0-9a-f]{40}|[0-9a-f]{64}"


def not_verified(repo_id: str, names: list[str]) -> HubError:
    """The error that nobody can tell whether these files of the cache are what the Hub has."""
    verb = "is" if len(names) == 1 else "are"
    return HubError(
        f"{', '.join(names)} of '{repo_id}' {verb} not verified: the Hub cannot be asked for the hash, and no "
        "earlier load has kept it. Load once with a connection, or take what is in the cache by "
        "`allow_unverified=True` (in commands, --allow_unverified)."
    )


def settle_unverified(repo_id: str, names: list[str], allowed: bool) -> None:
    """Ends a load whose files could not all be verified: nothing, a warning that names them, or the error.

    Args:
        repo_id: Where they are from.
        names: What `fetch_file` named as unverified.
        allowed: Whether the caller takes them all the same.

    Raises:
        HubError: There are such files, and the caller does not.
    """
    if names and not allowed:
        raise not_verified(repo_id, names)
    if names:
        logger.warning("%s They are loaded all the same.", not_verified(repo_id, names))


def verify(
    path: Path, repo_id: str, name: str, token: str | bool | None, repo_type: str, unverified: list[str] | None
) -> None:
    """Compares a file of the cache with the hash under which the Hub knows it.

    Args:
        path: Where it is in the cache.
        repo_id: `"user/name"`.
        name: Its path in the repository.
        token: As everywhere on the Hub.
        repo_type: `"model"` or `"dataset"`.
        unverified: See `fetch_file`.

    Raises:
        HubError: Its content is not what the Hub has, or nobody can tell and there is no list `unverified`.
    """
    depth = name.count("/")
    commit, repository = path.parents[depth].name, path.parents[depth + 2]
    # A commit never changes, so neither do the hashes of its files: the Hub is asked once. The name of a file in the
    # cache is no such word, whoever wrote the file could give it any name.
    record = repository / _VERIFIED / commit / f"{name}.hash"
    expected = record.read_text(encoding="ascii", errors="replace").strip() if record.is_file() else ""
    is_recorded = re.fullmatch(_HASH, expected) is not None
    if not is_recorded:
        try:
            (entry,) = hub_api(token).get_paths_info(repo_id, name, revision=commit, repo_type=repo_type)
            assert isinstance(entry, RepoFile)
            expected = entry.lfs.sha256 if entry.lfs else entry.blob_id
        except Exception as error:
            if unverified is None:
                raise not_verified(repo_id, [name]) from error
            unverified.append(name)
            return
    found = file_sha256(path) if len(expected) == 64 else _git_hash(path)
    if found != expected:
        raise HubError(
            f"'{name}' of '{repo_id}' is damaged in the cache: its hash is {found}, on the Hub it is {expected}. "
            f"Delete {path.resolve()} and load again."
        )
    if not is_recorded:
        with suppress(OSError):  # a cache that is read-only
            record.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(record) as temporary:
                Path(temporary).write_text(expected, encoding="ascii")


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
