"""Token data sets: images as parquet files of image tokens, with a manifest that says what made them.

    manifest.json         tokenizer (name, revision, hash of its weights), preprocessing, shape, codes, splits, hashes
    train-00000.parquet   image_tokens (flat), label where there is one, key, view
    train-00001.parquet   ...

`hf_vq.data.tokenize` writes them, `load_token_dataset` reads them, `push_token_dataset` publishes them.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub import CommitInfo

from hf_vq.cards.files import CARD_FILE
from hf_vq.cards.tokens import token_card
from hf_vq.data.manifest import Manifest, problem_of_manifest, require_inside, verify_shard, warn_if_unverified
from hf_vq.data.shard_files import in_row_groups
from hf_vq.hub.loading import load_tokenizer
from hf_vq.hub.repository import (
    branch_to_push,
    create_repository,
    fetch_file,
    publish_folder,
    require_hub_id,
)
from hf_vq.hub.verification import settle_unverified
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.utils.hashes import weights_sha256
from hf_vq.utils.settings import differences
from hf_vq.utils.text import DATA_PREFIX, plain_id, public_name

FORMAT = 1
MANIFEST_FILE = "manifest.json"

logger = logging.getLogger(__name__)


def load_token_dataset(
    path: str | Path,
    split: str = "train",
    *,
    tokenizer: VQModel | str | Path | None = None,
    revision: str | None = None,
    streaming: bool = False,
    token: str | bool | None = None,
    allow_unverified: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """Loads the tokens of images.

    A row is a dict with

    - ``image_tokens``: int64 tensor (h, w), or (h, w, groups) with more than one group, as `VQModel.decode` takes it;
    - ``label``: int, where the images had labels (-1 for one without); ``features["label"].names`` may name them;
    - ``key``: str, the image's file name or row number, unique up to the view;
    - ``view``: str, such as ``"center"`` or ``"crop-1-flip"``; the views of an image follow each other.

    PyTorch's default collation makes batches of them. ``with_format(None)`` gives the flat lists that are stored. A
    stream has no ``features``; `read_manifest` has the labels' names, too.

    Args:
        path: Folder, or id of a data set on the Hub; `"hf://datasets/user/name"` asks the Hub whatever is here.
        split: Name of the split.
        tokenizer: What the tokens must have been made by: a model, its folder or Hub id, or its `weights_sha256`.
            None to take them as they are.
        revision: Branch, tag or commit of the Hub data set.
        streaming: Whether to read as it goes.
        token: As everywhere on the Hub; by default the stored one.
        allow_unverified: Whether cached files may be used that cannot be verified; see `from_hub`.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: There is no manifest, or files of the split are missing.
        ValueError: Another tokenizer made the tokens, the split is unknown or was never finished, or a file is
            not what the manifest says.
        HubError: There is no such repository or revision, or access is denied.
    """
    folder = Path(path).expanduser()
    unverified: list[str] = []
    manifest_file = _manifest_file(path, revision, token, unverified)
    manifest = read_manifest(manifest_file)
    where = f"'{path}'"
    if tokenizer is not None:
        check_tokenizer(manifest, tokenizer, where, allow_unverified=allow_unverified)
    if split not in manifest["splits"]:
        raise ValueError(f"unknown split {split!r} of {where}: available are {', '.join(manifest['splits'])}")
    record = manifest["splits"][split]
    if "shards" not in record:
        raise ValueError(f"the split {split!r} of {where} is not finished: run the command that writes it again")

    names = [shard["file"] for shard in record["shards"]]
    if folder.is_dir():
        files = [str(folder / name) for name in names]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(names)} files of {where} are missing, {missing[0]} for one: run the command "
                "that wrote them again, it writes what is missing"
            )
        require_inside(folder, names)
    else:
        commit = manifest_file.parent.name
        if streaming:
            files = [f"{DATA_PREFIX}{plain_id(str(path))}@{commit}/{name}" for name in names]
        else:
            files = [
                str(fetch_file(str(path), name, commit, token, unverified, repo_type="dataset")) for name in names
            ]
    settle_unverified(str(path), unverified, allow_unverified)

    if streaming and not folder.is_dir():
        logger.warning("%s is read as a stream: not verified.", where)
    else:
        warn_if_unverified(record, split, where)
        for file, shard in zip(files, record["shards"], strict=True):
            verify_shard(Path(file), shard, manifest["image_tokens"])
    reshape = partial(_to_tensors, shape=manifest["image_tokens"]["shape"])
    found = datasets.load_dataset("parquet", data_files={split: files}, split=split, streaming=streaming, token=token)
    if streaming:
        return in_row_groups(found, files).map(reshape, batched=True, batch_size=256)
    return found.with_transform(reshape)


def _to_tensors(batch: dict[str, list], shape: Sequence[int]) -> dict[str, list]:
    if "image_tokens" not in batch:  # a selection of columns
        return batch
    tokens = torch.tensor(batch["image_tokens"], dtype=torch.long).view(-1, *shape)
    return {**batch, "image_tokens": list(tokens)}


def read_manifest(
    path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    allow_unverified: bool = False,
) -> Manifest:
    """The manifest of a token data set.

    Args:
        path: The file, its folder, or the id of a data set on the Hub.
        revision: Branch, tag or commit of the Hub data set.
        token: As everywhere on the Hub; by default the stored one.
        allow_unverified: Whether a cached file may be used that cannot be verified; see `from_hub`.

    Returns:
        Its content, among it ``image_tokens`` (``shape``, ``dtype``, ``num_codes``), ``tokenizer`` (``name``,
        ``revision``, ``weights_sha256``), ``label_names`` and ``splits``.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not a manifest, or a newer version of this package wrote it.
        HubError: There is no such repository or revision, or access is denied.
    """
    unverified: list[str] = []
    file = _manifest_file(path, revision, token, unverified)
    settle_unverified(str(path), unverified, allow_unverified)
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{file}' is not the manifest of a token data set ({error!r})") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(
            f"'{file}' has format {version}, this version of hf_vq reads up to {FORMAT}: pip install --upgrade hf_vq"
        )
    problem = problem_of_manifest(manifest)
    if problem is not None:
        raise ValueError(f"'{file}' is not the manifest of a token data set: {problem}")
    return manifest


def _manifest_file(path: str | Path, revision: str | None, token: str | bool | None, unverified: list[str]) -> Path:
    local = Path(path).expanduser()
    if local.is_file():
        return local
    if local.is_dir():
        if not (local / MANIFEST_FILE).is_file():
            raise FileNotFoundError(f"'{path}' is not a token data set: it has no {MANIFEST_FILE}")
        return local / MANIFEST_FILE
    repo_id = require_hub_id(path, "no token data set", DATA_PREFIX)
    try:
        return fetch_file(repo_id, MANIFEST_FILE, revision, token, unverified, repo_type="dataset")
    except FileNotFoundError:
        raise FileNotFoundError(f"'{path}' is not a token data set: it has no {MANIFEST_FILE}") from None


# ---- which tokenizer


def check_tokenizer(
    manifest: Manifest, tokenizer: VQModel | str | Path, where: str, *, allow_unverified: bool = False
) -> None:
    """Raises a `ValueError` that says what differs if other weights than the manifest's are in hand."""
    made_by = manifest["tokenizer"]
    there = {"weights_sha256": made_by["weights_sha256"]}
    here: dict[str, Any] = {}
    if isinstance(tokenizer, str) and re.fullmatch(r"[0-9a-f]{64}", tokenizer):
        here["weights_sha256"] = tokenizer
    else:
        model = tokenizer
        if not isinstance(model, torch.nn.Module):
            model = load_tokenizer(model, allow_unverified=allow_unverified)[0]
        shape = manifest["image_tokens"]["shape"]
        there |= {"num_codes": manifest["image_tokens"]["num_codes"], "groups": shape[2] if len(shape) > 2 else 1}
        here = {
            "weights_sha256": weights_sha256(model),
            "num_codes": model.config.num_codes,
            "groups": model.config.num_groups,
        }
    if there == here:
        return
    changes = "\n  ".join(differences(there, here))
    revision = f" at revision {made_by['revision']}" if made_by["revision"] else ""
    raise ValueError(
        f"the tokens of {where} were made by another tokenizer:\n  {changes}\n"
        f"Pass the one that made them, '{made_by['name']}'{revision}, or tokenize the images again"
    )


def tokenizer_name(tokenizer: str | Path, folder: str | Path) -> str | None:
    """The name of a tokenizer in the manifest of a folder.

    What an earlier version began keeps its name: to that, the tokenizer of every run was "final".
    """
    with suppress(OSError, ValueError):
        old = read_manifest(folder)["tokenizer"]["name"]
        if old == Path(tokenizer).expanduser().resolve().name:
            return old
    return public_name(str(tokenizer), follow_links=True)


# ---- columns


def token_dtype(num_codes: int) -> str:
    """The smallest unsigned type that holds the ids of so many codes."""
    return next(f"uint{bits}" for bits in (8, 16, 32) if num_codes <= 2**bits)


def token_features(num_tokens: int, num_codes: int, label: Any = None) -> datasets.Features:
    """The columns of a token data set.

    Args:
        num_tokens: Tokens of an image, over all groups.
        num_codes: Codes that they stand for.
        label: Feature of the labels, None without.
    """
    tokens = datasets.List(datasets.Value(token_dtype(num_codes)), length=num_tokens)
    columns = {"image_tokens": tokens} | ({} if label is None else {"label": label})
    return datasets.Features(columns | {"key": datasets.Value("string"), "view": datasets.Value("string")})


# ---- publishing


def push_token_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Publishes a finished token data set, with a card, in one commit; files of an earlier push are replaced.

    Args:
        folder: What `hf_vq.data.tokenize` wrote.
        repo_id: `"user/name"`, or `"name"` for one of the user who is logged in; created if it does not exist.
        revision: Branch; `"main"` by default. One that does not exist is made.
        private: Of a new repository; None for the namespace's default.
        create_pr: Whether to open a pull request instead of moving `"main"`.
        commit_message: First line of the commit's message.
        token: As everywhere on the Hub; by default the stored one.

    Returns:
        The commit: a string, its URL, with `oid` and, for a pull request, `pr_url`.

    Raises:
        FileNotFoundError: There is no manifest, or files are missing.
        ValueError: A split is not finished, a file is not what the manifest says, or `create_pr` came with a branch.
        HubError: Missing rights, a lost connection, a failing server; the repository is as it was.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    unfinished = [split for split, record in manifest["splits"].items() if "shards" not in record]
    if unfinished:
        raise ValueError(
            f"'{folder}' was not published: the splits {', '.join(unfinished)} are not finished. Run the command that "
            "writes them again"
        )
    names = [shard["file"] for record in manifest["splits"].values() for shard in record["shards"]]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"'{folder}' was not published: {len(missing)} files are missing, such as {missing[0]}"
        )
    require_inside(folder, [MANIFEST_FILE, *names])
    for record in manifest["splits"].values():
        for shard in record["shards"]:
            verify_shard(folder / shard["file"], shard, manifest["image_tokens"])
    branch_to_push(revision, create_pr)
    # Last: what is wrong with the arguments leaves no empty repository. The card needs the full name.
    repo_id = create_repository(repo_id, repo_type="dataset", private=private, token=token)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)  # links to what belongs to the data set, whatever else the folder holds
        for name in [MANIFEST_FILE, *names]:
            (staged / name).symlink_to((folder / name).resolve())
        (staged / CARD_FILE).write_text(str(token_card(manifest, repo_id)), encoding="utf-8")
        return publish_folder(
            staged,
            repo_id,
            repo_type="dataset",
            revision=revision,
            private=private,
            create_pr=create_pr,
            commit_message=commit_message or "Upload token data set",
            token=token,
        )
