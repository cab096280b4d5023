"""Files to and from the Hub: a folder goes up in one commit, files come down from one commit and are verified.

Whatever the folder holds, a model or a data set, it is published by `publish_folder`.
"""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import (
    _CACHED_NO_EXIST,
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_vq.cards.files import CARD_FILE, RESULTS_FILE
from hf_vq.cards.merging import fill_card, has_part
from hf_vq.hub.client import HubError, hub_api
from hf_vq.hub.folders import OF_THE_RUN
from hf_vq.hub.lost_answers import find_commit
from hf_vq.hub.new_branches import NewBranch
from hf_vq.hub.samples import is_sample, sample_names
from hf_vq.hub.verification import verify
from hf_vq.utils.text import FINAL_FOLDER, HUB_PREFIX, plain_id

MAIN = "main"

# A whole file of weights would be loaded in place of newer shards, and old parquet files along with new ones. The
# first group is what the pieces belong to: the model, a split, or the package of a Space.
_PARTS = {
    "model": re.compile(r"(model)(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?"),
    "dataset": re.compile(r"(\w+)-\d{5,}\.parquet"),
    "space": re.compile(r"(hf_vq)/.+"),  # modules of an older version of the package
}


def create_repository(
    repo_id: str, *, repo_type: str = "model", private: bool | None = None, token: str | bool | None = None
) -> str:
    """Makes sure that a repository exists.

    Args:
        repo_id: `"user/name"`, or `"name"` for one of the user who is logged in.
        repo_type: `"model"`, `"dataset"` or `"space"`.
        private: Of a new repository; None for the namespace's default.
        token: As everywhere on the Hub; by default the stored one.

    Returns:
        The full name.

    Raises:
        HubError: Nobody is logged in, the namespace is not the user's, or `private=True` was asked for a repository
            that exists and is public.
    """
    api = hub_api(token)
    try:
        sdk = "gradio" if repo_type == "space" else None
        made = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
        full_name = str(made.repo_id)
        is_private = api.repo_info(full_name, repo_type=repo_type).private if private else True
    except HFValidationError:
        raise
    except Exception as error:
        advice = "Log in as someone who may write there (`hf auth login`), or pass such a user's `token`."
        if not isinstance(error, HfHubHTTPError):
            advice = "Check the connection."
        raise HubError(
            f"Cannot create or open the {repo_type} repository '{repo_id}': {_reason(error)}. {advice}"
        ) from error
    if not is_private:
        raise HubError(
            f"'{full_name}' already exists and is public, so `private=True` cannot be kept. Make it private in its "
            "settings first, push to another name, or leave `private` out."
        )
    return full_name


def publish_folder(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Publishes all files of a folder in one commit; what goes wrong before its end leaves the repository as it was.

    `HfApi.upload_folder` cuts a large folder in several commits, and a new branch would be there before the files are:
    so large files go up first, and `HfApi.create_commit` makes the one commit.

    A process that is killed can leave a new branch without the commit, as a copy of `"main"`. The next push from the
    same machine takes it for one that does not exist.

    A card (README.md) that the repository has is kept; see `fill_card`. Weights and tokens that an earlier push has
    cut in other pieces are deleted in the same commit, and so is what a run left beside older weights. Other files
    that the folder does not have stay.

    Args:
        folder: What to publish, complete.
        repo_id: Where; created if it does not exist.
        repo_type: `"model"`, `"dataset"` or `"space"`.
        revision: Branch; `"main"` by default. One that does not exist is made, from `"main"`.
        private: Of a new repository.
        create_pr: Whether to open a pull request instead of moving the branch `"main"`.
        commit_message: First line of the commit's message.
        commit_description: The rest of it.
        token: As everywhere on the Hub; by default the stored one.

    Returns:
        The commit: a string, its URL, with `oid` and, for a pull request, `pr_url`.

    Raises:
        ValueError: The folder has no files, `create_pr` came with a branch, or the repository's card cannot be merged.
        HubError: Missing rights, a lost connection, a failing server, another commit in the meantime. If only the
            answer was lost, the commit is found and returned.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if not files:
        raise ValueError(f"There is nothing to publish: '{folder}' has no files.")
    branch = branch_to_push(revision, create_pr)
    repo_id = create_repository(repo_id, repo_type=repo_type, private=private, token=token)
    api = hub_api(token)
    message = commit_message or f"Upload {repo_type}"
    made_branch = is_asked = False
    new_branch = NewBranch(api, repo_id, repo_type, branch)
    try:
        head, exists = _head(api, repo_id, repo_type, branch)
        if exists and branch != MAIN and new_branch.is_left_over(head):
            api.delete_branch(repo_id, repo_type=repo_type, branch=branch)  # "main" may have moved since
            head, exists = _head(api, repo_id, repo_type, branch)
        old = set(api.list_repo_files(repo_id, repo_type=repo_type, revision=head))
        contents: dict[str, Path | bytes] = dict(files)
        if CARD_FILE in files and CARD_FILE in old:
            contents[CARD_FILE] = _merged_card(api, repo_id, repo_type, head, files[CARD_FILE]).encode()
        additions = [CommitOperationAdd(path, content) for path, content in contents.items()]
        parts = _PARTS[repo_type]
        renewed = {part[1] for path in files if (part := parts.fullmatch(path))}
        deletions = [
            CommitOperationDelete(path)
            for path in sorted(old - set(files))
            if (part := parts.fullmatch(path)) and part[1] in renewed
        ]
        if "model" in renewed:  # what belonged to the weights that were there
            deletions += [CommitOperationDelete(path) for path in OF_THE_RUN if path in old and path not in files]
        if RESULTS_FILE in old and RESULTS_FILE not in files and _is_ours(files.get(CARD_FILE)):
            deletions.append(CommitOperationDelete(RESULTS_FILE))  # numbers of an earlier card
        # The large files go first: they are seen by nobody before a commit names them.
        api.preupload_lfs_files(
            repo_id, additions, repo_type=repo_type, revision=branch if exists else MAIN, create_pr=create_pr,
            free_memory=False,
        )  # fmt: skip
        if not exists:
            new_branch.begin(head)
            api.create_branch(repo_id, repo_type=repo_type, branch=branch, revision=head)
            made_branch = True
        is_asked = True
        commit = api.create_commit(
            repo_id,
            [*additions, *deletions],
            commit_message=message,
            commit_description=commit_description,
            repo_type=repo_type,
            revision=branch,
            create_pr=create_pr,
            parent_commit=head,  # a card that somebody edits meanwhile is not overwritten
        )
        new_branch.end()
        return commit
    except BaseException as error:
        if is_asked and isinstance(error, Exception):  # the answer may be lost, and the commit there
            try:
                found = find_commit(
                    api, repo_id, additions, repo_type=repo_type, branch=branch, parent=head, message=message,
                    description=commit_description, create_pr=create_pr,
                )  # fmt: skip
            except Exception:
                raise HubError(
                    f"Nobody knows whether '{folder}' was published to '{repo_id}' ({branch}): {_reason(error)}, and "
                    "the Hub cannot be asked. Look there before you make the same call again."
                ) from error
            if found is not None:
                new_branch.end()
                return found
        if made_branch:
            with suppress(Exception):
                if _head(api, repo_id, repo_type, branch)[0] == head:  # no commit is on it
                    api.delete_branch(repo_id, repo_type=repo_type, branch=branch)
                new_branch.end()
        elif isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code == 409:
            new_branch.end()  # somebody else made it meanwhile
        if not isinstance(error, Exception) or type(error) is ValueError:
            raise
        raise HubError(
            f"'{folder}' was not published to '{repo_id}' ({branch}): {_reason(error)}. Nothing half done is visible "
            "there; the same call can be made again."
        ) from error


def branch_to_push(revision: str | None, create_pr: bool) -> str:
    """The branch that these arguments of a push mean.

    Raises:
        ValueError: `create_pr` came with a branch.
    """
    if create_pr and revision not in (None, MAIN):
        raise ValueError(f"A pull request is opened against '{MAIN}': leave out revision={revision!r} or `create_pr`.")
    return revision or MAIN


def require_hub_id(name: str | Path, what: str, prefix: str = HUB_PREFIX) -> str:
    """The repository that a name means which is not here; a mistyped folder is told before the Hub is asked.

    Args:
        name: As a user gave it: a folder that is not there, an id, or the prefix and an id.
        what: What was looked for, for the message, as `"no tokenizer"`.
        prefix: What asks the Hub, whatever is here.

    Raises:
        FileNotFoundError: It is no repository's name, or hardly one: it has no owner, its first part is a folder that
            is here, or its second what the model of a run is called.
    """
    told = str(name)
    repo_id = told.removeprefix(prefix)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo_id) is None or repo_id.startswith("."):
        raise FileNotFoundError(f"{what} in '{name}': there is no such folder, and it is no Hub id such as user/name")
    path = Path(told)
    if repo_id == told and (len(path.parts) == 1 or path.parent.is_dir() or path.name == FINAL_FOLDER):
        near = difflib.get_close_matches(told, sample_names(), n=1) if prefix == HUB_PREFIX else []
        hint = f". Or did you mean {near[0]!r}, which comes with the package?" if near else ""
        raise FileNotFoundError(
            f"{what} in '{name}': there is no such folder here; ask the Hub for it with {prefix}{name}{hint}"
        )
    return repo_id


def require_findable(name: str | Path, what: str, prefix: str = HUB_PREFIX) -> None:
    """Raises the error of `require_hub_id` where nothing is here under a name; the Hub is not asked."""
    if not Path(name).expanduser().exists() and not (prefix == HUB_PREFIX and is_sample(name)):
        require_hub_id(name, what, prefix)


def fetch_file(
    repo_id: str,
    name: str,
    revision: str | None = None,
    token: str | bool | None = None,
    unverified: list[str] | None = None,
    *,
    repo_type: str = "model",
) -> Path:
    """Fetches a file of a repository, or finds it in the cache, and verifies its content.

    Args:
        repo_id: `"user/name"`, also with `"hf://"` before it.
        name: The file's path in the repository.
        revision: Branch, tag or commit; `"main"` by default.
        token: As everywhere on the Hub; by default the stored one.
        unverified: Gets the names of cached files whose hash the Hub cannot be asked for, where no earlier call has
            kept it. Without such a list this is an error.
        repo_type: `"model"` or `"dataset"`.

    Returns:
        Where it is; the folder's name is the commit.

    Raises:
        FileNotFoundError: The commit has no such file.
        HubError: There is no such repository or revision, access is denied, the file is neither reachable nor cached,
            its content is not what the Hub has, or nobody can tell.
    """
    repo_id = plain_id(repo_id)
    try:
        path = Path(hf_hub_download(repo_id, name, repo_type=repo_type, revision=revision or MAIN, token=token))
    except LocalEntryNotFoundError as error:
        cached = try_to_load_from_cache(repo_id, name, revision=revision or MAIN, repo_type=repo_type)
        if cached is _CACHED_NO_EXIST:
            raise FileNotFoundError(name) from error
        raise HubError(
            f"'{name}' of '{repo_id}' ({revision or MAIN}) is not in the cache and the Hub cannot be reached. Check "
            "the name and the connection; offline, only what was loaded once by the same `revision` is found."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(name) from error
    except GatedRepoError as error:
        page = f"{hub_api(token).endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
        raise HubError(
            f"'{repo_id}' is gated: its owner has to grant access first. Ask for it on {page}, then log in as that "
            "user (`hf auth login`) or pass the `token`."
        ) from error
    except RevisionNotFoundError as error:
        known = ""
        with suppress(Exception):
            refs = hub_api(token).list_repo_refs(repo_id, repo_type=repo_type)
            known = f" Its branches: {_names(refs.branches)}; its tags: {_names(refs.tags)}."
        raise HubError(f"'{repo_id}' has no revision '{revision}'.{known}") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"There is no {repo_type} repository '{repo_id}', or it is private and the token that was used may not "
            "read it. Check the name; for a private one log in (`hf auth login`) or pass a `token`."
        ) from error
    except HFValidationError:
        raise
    except Exception as error:
        raise HubError(
            f"'{name}' of '{repo_id}' could not be fetched: {_reason(error)}. The same call can be made again."
        ) from error
    verify(path, repo_id, name, token, repo_type, unverified)
    return path


def _head(api: HfApi, repo_id: str, repo_type: str, branch: str) -> tuple[str, bool]:
    """The commit to build on, and whether the branch exists."""
    refs = api.list_repo_refs(repo_id, repo_type=repo_type, include_pull_requests=True)
    heads = {ref.name: ref.target_commit for ref in [*refs.branches, *(refs.pull_requests or [])]}
    heads |= {ref.ref: ref.target_commit for ref in refs.pull_requests or []}
    if branch in heads:
        return heads[branch], True
    if branch in {tag.name for tag in refs.tags}:
        raise ValueError(f"'{branch}' is a tag of '{repo_id}', which stays where it is: push to a branch.")
    return heads[MAIN], False


def _merged_card(api: HfApi, repo_id: str, repo_type: str, head: str, ours: Path) -> str:
    path = api.hf_hub_download(repo_id, CARD_FILE, repo_type=repo_type, revision=head)
    try:
        return fill_card(Path(path).read_text(encoding="utf-8"), ours.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The card of '{repo_id}' cannot be filled in: {error}") from error


def _is_ours(card: Path | None) -> bool:
    return card is not None and has_part(card.read_text(encoding="utf-8"))


def _names(refs: list) -> str:
    return ", ".join(ref.name for ref in refs) or "none"


def _reason(error: Exception) -> str:
    """An exception in one line, with what caused it where that says more."""
    if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code == 412:
        return "the branch has moved in the meantime"
    causes = [error] if error.__cause__ is None or isinstance(error, HfHubHTTPError) else [error, error.__cause__]
    return ": ".join(" ".join(str(cause).split()).rstrip(".") or type(cause).__name__ for cause in causes)
