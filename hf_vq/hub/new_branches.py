"""Branches that a push has made, and that have no commit of it yet: noted on this machine until they have.

The Hub makes a branch before it takes a commit for it. A push that is killed in between leaves a branch without a
commit of its own, which looks as if somebody had made it. By the note, the next push knows it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name

from hf_vq.utils.files import write_text

_FOLDER = "hf_vq_new_branches"  # of the cache's repository


class NewBranch:
    """A branch that a push is about to make.

    Args:
        api: The client.
        repo_id: Full name of the repository.
        repo_type: `"model"` or `"dataset"`.
        branch: Its name.
    """

    def __init__(self, api: HfApi, repo_id: str, repo_type: str, branch: str) -> None:
        self.endpoint = api.endpoint
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type=repo_type) / _FOLDER
        self.note = folder / quote(branch, safe="")

    def is_left_over(self, head: str) -> bool:
        """Whether a push from here made the branch, on this commit, and was killed before its own commit."""
        with suppress(OSError, ValueError):
            return self.note.read_text(encoding="utf-8") == self._text(head)
        return False

    def begin(self, head: str) -> None:
        """Notes that the branch will be made on a commit. Without a cache that can be written, nothing is noted."""
        with suppress(OSError):
            self.note.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._text(head), self.note)

    def end(self) -> None:
        """Forgets the note: the branch has a commit of its own, or is gone."""
        with suppress(OSError):
            self.note.unlink(missing_ok=True)

    def _text(self, head: str) -> str:
        return f"{self.endpoint} {head}"
