"""What a Hub holds, all in memory: repositories with commits, branches, tags, pull requests. And how it says no."""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

# The Hub decides by content; the suffix is enough for tests.
LFS_SUFFIXES = re.compile(r"\.(safetensors|bin|pt|parquet|npy|npz|zip|png|jpg|webp)$")


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: `content` names the bytes by their SHA-256, `oid` is what git would call the file."""

    content: str
    size: int
    oid: str
    is_lfs: bool

    @property
    def etag(self) -> str:
        """What the Hub sends as ETag, and clients name the file after in their cache."""
        return self.content if self.is_lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    sha: str
    parent: str | None
    title: str
    message: str
    date: str
    files: dict[str, StoredFile]


@dataclass
class Repository:
    """A repository; `refs` maps branches, and pull requests as `refs/pr/N`, to commits."""

    kind: str
    name: str
    private: bool = False
    gated_for: set[str] | None = None
    """None, or the users that may read the files besides the owner."""
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """The user whose repository it is."""
        return self.name.split("/")[0]

    def resolve(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag, a pull request or a (shortened) hash means."""
        sha = self.refs.get(revision) or self.tags.get(revision)
        if sha is None and len(revision) >= 7:
            sha = next((known for known in self.commits if known.startswith(revision)), None)
        return self.commits[sha] if sha else None

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits that led to a revision, the newest first."""
        found = []
        commit = self.resolve(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return found


class HubStore:
    """The repositories of all users, and the contents of their files by SHA-256."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.contents: dict[str, bytes] = {}

    def create(self, kind: str, name: str, private: bool) -> Repository:
        """Makes a repository with the Hub's first commit in it."""
        repository = Repository(kind, name, private)
        self.repositories[kind, name] = repository
        attributes = self.add_regular(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        self.commit(repository, "main", None, "initial commit", {".gitattributes": attributes})
        return repository

    def add_regular(self, data: bytes) -> StoredFile:
        """Keeps the content of a file that git itself stores."""
        return StoredFile(self._keep(data), len(data), _git_oid(data), is_lfs=False)

    def add_lfs(self, sha256: str) -> StoredFile:
        """The file of a large content that was uploaded before."""
        size = len(self.contents[sha256])
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return StoredFile(sha256, size, _git_oid(pointer.encode()), is_lfs=True)

    def commit(
        self,
        repository: Repository,
        ref: str,
        parent: str | None,
        title: str,
        files: dict[str, StoredFile],
        message: str = "",
    ) -> Commit:
        """Adds a commit and moves a branch, or a pull request, to it."""
        sha = hashlib.sha1(uuid.uuid4().bytes).hexdigest()
        commit = Commit(sha, parent, title, message, _now(), files)
        repository.commits[sha] = commit
        repository.refs[ref] = sha
        return commit

    def read(self, name: str, path: str, revision: str = "main", kind: str = "models") -> bytes:
        """The content of a file."""
        return self.contents[self.files(name, revision, kind)[path].content]

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, StoredFile]:
        """The files of a revision."""
        commit = self.repositories[kind, name].resolve(revision)
        if commit is None:
            raise KeyError(f"{name} has no revision {revision}")
        return commit.files

    def write(self, name: str, path: str, data: bytes, revision: str = "main", kind: str = "models") -> str:
        """Commits one file, as a person does in the browser; returns the commit's hash."""
        repository = self.repositories[kind, name]
        stored = self.add_lfs(self._keep(data)) if LFS_SUFFIXES.search(path) else self.add_regular(data)
        files = self.files(name, revision, kind) | {path: stored}
        return self.commit(repository, revision, repository.refs[revision], f"Update {path}", files).sha

    def _keep(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.contents[sha256] = data
        return sha256


def as_json(path: str, file: StoredFile) -> dict[str, Any]:
    """A file as the Hub lists it."""
    listed: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.is_lfs:
        listed["lfs"] = {"oid": file.content, "size": file.size, "pointerSize": 130}
    return listed


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


class HubError(Exception):
    """An answer other than success, with the code that clients turn into their exception."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message}
        if code is not None:
            self.headers["X-Error-Code"] = code
        if commit is not None:
            self.headers["X-Repo-Commit"] = commit
