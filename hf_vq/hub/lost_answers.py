"""Whether a commit is on the Hub although its answer never came."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.hf_api import RepoFile


def find_commit(
    api: HfApi,
    repo_id: str,
    additions: Sequence[CommitOperationAdd],
    *,
    repo_type: str,
    branch: str,
    parent: str,
    message: str,
    description: str | None,
    create_pr: bool,
) -> CommitInfo | None:
    """Looks for the commit that a push asked for.

    Args:
        api: The client.
        repo_id: Full name of the repository.
        additions: The files of the commit.
        repo_type: `"model"` or `"dataset"`.
        branch: Where the commit would be, unless it opened a pull request.
        parent: The commit that it was made on.
        message: Its first line.
        description: The rest of it.
        create_pr: Whether it opened a pull request.

    Returns:
        The commit, or None if there is none with this parent, this message and these files.
    """
    page = f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    places: list[str] = [branch]
    if create_pr:
        refs = api.list_repo_refs(repo_id, repo_type=repo_type, include_pull_requests=True).pull_requests or []
        places = sorted((ref.ref for ref in refs), key=lambda ref: int(ref.rpartition("/")[2]), reverse=True)
    for place in places:
        commits = api.list_repo_commits(repo_id, repo_type=repo_type, revision=place)
        after = [commit for commit, before in zip(commits, commits[1:], strict=False) if before.commit_id == parent]
        for commit in after:
            if commit.title == message and _holds(api, repo_id, repo_type, commit.commit_id, additions):
                return CommitInfo(
                    commit_url=f"{page}/commit/{commit.commit_id}",
                    commit_message=message,
                    commit_description=description or "",
                    oid=commit.commit_id,
                    pr_url=f"{page}/discussions/{place.rpartition('/')[2]}" if create_pr else None,
                )
    return None


def _holds(api: HfApi, repo_id: str, repo_type: str, commit: str, additions: Sequence[CommitOperationAdd]) -> bool:
    """Whether a commit has these files, byte for byte."""
    paths = [addition.path_in_repo for addition in additions]
    entries = {entry.path: entry for entry in api.get_paths_info(repo_id, paths, revision=commit, repo_type=repo_type)}
    return all(_is_same(entries.get(addition.path_in_repo), addition) for addition in additions)


def _is_same(entry: object, addition: CommitOperationAdd) -> bool:
    if not isinstance(entry, RepoFile):
        return False
    if entry.lfs:
        return entry.lfs.sha256 == addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        content = file.read()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
