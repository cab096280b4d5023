"""The protocol of huggingface.co as far as the tests need it: one function for each kind of request."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from .hub_store import LFS_SUFFIXES, Commit, HubError, Repository, as_json

if TYPE_CHECKING:
    from .hub_server import HubServer

USERS = {"hf_alice": "alice", "hf_bob": "bob"}


class HubRequestHandler(BaseHTTPRequestHandler):
    """Finds the function for a request; each writes one answer."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def handle_request(self) -> None:
        """One request, under the lock of the store."""
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        with self.hub.lock:
            self.hub.requests.append((self.command, url.path))
            struck = [failure for failure in self.hub.failures if failure.strikes(self.command, url.path)]
            self.cut = any(failure.kind == "cut" for failure in struck)
            self.lost = any(failure.kind == "lost" for failure in struck)
            if self.cut and self.command in ("POST", "PUT"):
                self.rfile.read(max(int(self.headers.get("Content-Length") or 0) // 2, 1))
                return self.hang_up()
            self.body = self.read_body()
            try:
                if any(failure.kind == "error" for failure in struck):
                    raise HubError(500, "Internal server error")
                self.route(url.path)
            except HubError as error:
                self.answer(error.status, {"error": str(error)}, error.headers)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def route(self, path: str) -> None:
        """Calls the function whose pattern the path has."""
        for methods, pattern, function in ROUTES:
            match = pattern.fullmatch(path)
            if match is not None and self.command in methods:
                parts = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
                return function(self, **parts)
        raise HubError(404, "Sorry, we can't find the page you are looking for.")

    def read_body(self) -> bytes:
        """The body, sent whole or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, payload: Any = None, headers: dict[str, str] | None = None) -> None:
        """Sends JSON."""
        self.send(status, json.dumps(payload, default=str).encode(), {"Content-Type": "application/json"}, headers)

    def send(self, status: int, data: bytes, *headers: dict[str, str] | None) -> None:
        """Sends bytes, or only half of them before the connection ends, or nothing."""
        if self.lost:
            return self.hang_up()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for group in headers:
            for name, value in (group or {}).items():
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if self.cut else data)
        if self.cut:
            self.hang_up()

    def hang_up(self) -> None:
        """Resets the connection, as a lost network does."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        self.wfile = self.rfile  # the base class flushes `wfile` once more

    # Who may do what

    def user(self) -> str | None:
        """The user whose token came along."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def repository(self, kind: str, name: str, write: bool = False) -> Repository:
        """A repository that the user may see, or write to."""
        user = self.user()
        found = self.hub.store.repositories.get((kind, name))
        if found is None or (found.private and user != found.owner):
            # The Hub does not tell strangers whether a private repository exists.
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and user != found.owner:
            raise HubError(403, "Forbidden: you don't have the rights to write to this repository")
        return found

    def commit_of(self, repository: Repository, revision: str) -> Commit:
        """What a revision means."""
        commit = repository.resolve(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def web_address(self, kind: str, name: str) -> str:
        """Address of a repository's page."""
        return f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"

    # Users and repositories

    def whoami(self) -> None:
        """The user."""
        user = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        self.answer(200, {"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": token})

    def create_repository(self) -> None:
        """A new repository of the user's."""
        request = json.loads(self.body)
        kind, user = request.get("type", "model") + "s", self.user()
        owner = request.get("organization") or user
        name = f"{owner}/{request['name']}"
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if owner != user:
            raise HubError(403, f"You don't have the rights to create a {kind[:-1]} under the namespace {owner!r}")
        described = {"url": self.web_address(kind, name), "name": name, "id": name}
        if (kind, name) in self.hub.store.repositories:
            return self.answer(409, described | {"error": "You already created this repo"})
        self.hub.store.create(kind, name, request.get("visibility") == "private" or bool(request.get("private")))
        self.answer(200, described)

    def validate_card(self) -> None:
        """Takes every card."""
        self.answer(200, {"errors": [], "warnings": []})

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        """What the Hub's page of a repository tells."""
        repository = self.repository(kind, name)
        commit = self.commit_of(repository, revision)
        card: dict[str, Any] = {}
        if "README.md" in commit.files:
            text = self.hub.store.contents[commit.files["README.md"].content].decode()
            metadata = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
            card = (yaml.safe_load(metadata[1]) if metadata else None) or {}
        self.answer(
            200,
            {
                "_id": name, "id": name, "modelId": name, "author": repository.owner, "sha": commit.sha,
                "private": repository.private, "gated": "manual" if repository.gated_for is not None else False,
                "disabled": False, "downloads": 0, "likes": 0, "tags": card.get("tags") or [], "cardData": card,
                "library_name": card.get("library_name"), "pipeline_tag": card.get("pipeline_tag"),
                "createdAt": commit.date, "lastModified": commit.date,
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            },
        )  # fmt: skip

    def tree(self, kind: str, name: str, revision: str, folder: str = "") -> None:
        """The files below a folder."""
        files = self.commit_of(self.repository(kind, name), revision).files
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        deep = self.query.get("recursive", "").lower() in ("1", "true")
        found: list[dict[str, Any]] = []
        folders: set[str] = set()
        for path in sorted(path for path in files if path.startswith(prefix)):
            parts = path.removeprefix(prefix).split("/")
            parents = ["/".join(parts[:count]) for count in range(1, len(parts))]
            folders.update(prefix + parent for parent in (parents if deep else parents[:1]))
            if deep or len(parts) == 1:
                found.append(as_json(path, files[path]))
        if prefix and not found and not folders:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        self.answer(200, [_folder(path) for path in sorted(folders)] + found)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        """The files and folders of some paths; what does not exist is left out."""
        files = self.commit_of(self.repository(kind, name), revision).files
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        found = [as_json(path, files[path]) for path in paths if path in files]
        for path in paths:
            if path not in files and any(file.startswith(f"{path.rstrip('/')}/") for file in files):
                found.append(_folder(path.rstrip("/")))
        self.answer(200, found)

    def refs(self, kind: str, name: str) -> None:
        """Branches, tags and pull requests."""
        repository = self.repository(kind, name)
        listed: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for ref, sha in repository.refs.items():
            is_request = ref.startswith("refs/")
            full = ref if is_request else f"refs/heads/{ref}"
            group = listed["pullRequests" if is_request else "branches"]
            group.append({"name": ref, "ref": full, "targetCommit": sha})
        for tag, sha in repository.tags.items():
            listed["tags"].append({"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha})
        self.answer(200, listed)

    def history(self, kind: str, name: str, revision: str) -> None:
        """The commits up to a revision."""
        repository = self.repository(kind, name)
        self.commit_of(repository, revision)
        described = {"authors": [{"user": repository.owner}]}
        self.answer(
            200,
            [
                {"id": commit.sha, "title": commit.title, "message": commit.message, "date": commit.date} | described
                for commit in repository.history(revision)
            ],
        )

    def branch(self, kind: str, name: str, ref: str) -> None:
        """Makes or deletes a branch."""
        repository = self.repository(kind, name, write=True)
        if self.command == "DELETE":
            self.commit_of(repository, ref)
            del repository.refs[ref]
        elif ref in repository.refs:
            raise HubError(409, f"Reference already exists: refs/heads/{ref}")
        else:
            start = json.loads(self.body or b"{}").get("startingPoint") or "main"
            repository.refs[ref] = self.commit_of(repository, start).sha
        self.answer(200, {})

    def tag(self, kind: str, name: str, ref: str) -> None:
        """Makes a tag on the revision `ref`, or deletes the tag `ref`."""
        repository = self.repository(kind, name, write=True)
        if self.command == "DELETE":
            self.commit_of(repository, ref)
            del repository.tags[ref]
        else:
            tag = json.loads(self.body)["tag"]
            if tag in repository.tags:
                raise HubError(409, f"Tag reference exists already: {tag}")
            repository.tags[tag] = self.commit_of(repository, ref).sha
        self.answer(200, {})

    # Uploads

    def preupload(self, kind: str, name: str, revision: str) -> None:
        """Says of each file how it is to be sent, and what stands in its place."""
        self.may_commit(kind, name)
        files = self.commit_of(self.repository(kind, name), revision).files
        answers = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if LFS_SUFFIXES.search(file["path"]) else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            if file["path"] in files:
                answers[-1]["oid"] = files[file["path"]].etag
        self.answer(200, {"files": answers})

    def lfs_batch(self, name: str, kind: str = "models") -> None:
        """Says where to send the large files that are not here yet."""
        self.repository(kind, name)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            objects.append({"oid": wanted["oid"], "size": wanted["size"]})
            if wanted["oid"] not in self.hub.store.contents:
                objects[-1]["actions"] = {"upload": {"href": f"{self.hub.url}/_lfs/{wanted['oid']}"}}
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, sha256: str) -> None:
        """Takes a large file."""
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise HubError(400, "The content does not have the SHA-256 that was announced")
        self.hub.store.contents[sha256] = self.body
        self.answer(200)

    def may_commit(self, kind: str, name: str) -> None:
        """Owners commit; who sees the repository may open a pull request."""
        self.repository(kind, name, write=self.query.get("create_pr") != "1")

    def commit(self, kind: str, name: str, revision: str) -> None:
        """All changes of a push, at once."""
        self.may_commit(kind, name)
        repository, store = self.repository(kind, name), self.hub.store
        if revision not in repository.refs:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = self.commit_of(repository, revision)
        files, header = dict(head.files), {}
        for line in filter(None, self.body.splitlines()):
            change = json.loads(line)
            key, value = change["key"], change["value"]
            if key == "header":
                header = value
                if not head.sha.startswith(value.get("parentCommit", "")):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = store.add_regular(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in store.contents:
                    raise HubError(400, f"The large file {value['oid']} was not uploaded")
                files[value["path"]] = store.add_lfs(value["oid"])
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, f"{value['path']} does not exist", "EntryNotFound")
        address = self.web_address(kind, name)
        answer: dict[str, Any] = {"success": True, "hookOutput": ""}
        target = revision
        if self.query.get("create_pr") == "1":
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
            target = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{address}/discussions/{number}"
        title, message = header.get("summary", ""), header.get("description", "")
        made = store.commit(repository, target, head.sha, title, files, message)
        self.answer(200, answer | {"commitOid": made.sha, "commitUrl": f"{address}/commit/{made.sha}"})

    # Downloads

    def resolve(self, name: str, revision: str, path: str, kind: str = "models") -> None:
        """A file, or the part of it that was asked for."""
        repository = self.repository(kind, name)
        if repository.gated_for is not None:
            user = self.user()
            if user != repository.owner and user not in repository.gated_for:
                message = f"Access to {kind[:-1]} {name} is restricted and you are not in the authorized list."
                raise HubError(401 if user is None else 403, message, "GatedRepo")
        commit = self.commit_of(repository, revision)
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", commit.sha)
        data = self.hub.store.contents[file.content]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.is_lfs:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.etag}"'}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self.send(200, data, headers)
        start, end = int(part[1]), int(part[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self.send(206, data[start : end + 1], headers)


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


def _route(methods: str, pattern: str, function: Callable[..., None]) -> tuple[list[str], re.Pattern[str], Any]:
    """A row of the table below; `{api}` and `{web}` stand for a repository in the two forms of address."""
    name = "(?P<name>[^/]+/[^/]+?)"
    pattern = pattern.replace("{api}", f"/api/(?P<kind>models|datasets|spaces)/{name}")
    return methods.split(), re.compile(pattern.replace("{web}", f"(?:/(?P<kind>datasets|spaces))?/{name}")), function


ROUTES = [
    _route("GET", r"/api/whoami-v2", HubRequestHandler.whoami),
    _route("POST", r"/api/repos/create", HubRequestHandler.create_repository),
    _route("POST", r"/api/validate-yaml", HubRequestHandler.validate_card),
    _route("GET", r"{api}", HubRequestHandler.info),
    _route("GET", r"{api}/revision/(?P<revision>[^/]+)", HubRequestHandler.info),
    _route("GET", r"{api}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", HubRequestHandler.tree),
    _route("POST", r"{api}/paths-info/(?P<revision>[^/]+)", HubRequestHandler.paths_info),
    _route("GET", r"{api}/refs", HubRequestHandler.refs),
    _route("GET", r"{api}/commits/(?P<revision>[^/]+)", HubRequestHandler.history),
    _route("POST DELETE", r"{api}/branch/(?P<ref>.+)", HubRequestHandler.branch),
    _route("POST DELETE", r"{api}/tag/(?P<ref>.+)", HubRequestHandler.tag),
    _route("POST", r"{api}/preupload/(?P<revision>[^/]+)", HubRequestHandler.preupload),
    _route("POST", r"{api}/commit/(?P<revision>[^/]+)", HubRequestHandler.commit),
    _route("POST", r"{web}\.git/info/lfs/objects/batch", HubRequestHandler.lfs_batch),
    _route("PUT", r"/_lfs/(?P<sha256>\w+)", HubRequestHandler.lfs_upload),
    _route("GET HEAD", r"{web}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", HubRequestHandler.resolve),
]
