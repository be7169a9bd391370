"""The Hub's API on this machine: what is asked for to push and pull models, and to read data sets.

Repositories live in memory. A commit is published whole or not at all; weights go up beforehand, as
in Git LFS, and stay unseen until a commit names them.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "a" * 34
"""What the owner of all repositories sends."""


@dataclass
class Repository:
    """Commits by their hash, and the branches and tags that name some of them."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    refs: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def resolve(self, revision: str) -> str | None:
        """Hash of the commit that a branch, tag or hash names."""
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None

    def commit(self, revision: str, files: dict[str, bytes]) -> str:
        """Hash of a new commit of these files, the branch's newest from now on."""
        parent = self.refs[revision]
        digest = hashlib.sha1(parent.encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
        sha = digest.hexdigest()
        self.commits[sha] = files
        self.refs[revision] = sha
        return sha


class Hub(ThreadingHTTPServer):
    """Serves until it is closed; `with Hub() as hub`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.break_off: str | None = None
        """Part of a path: such requests are cut off in the middle of what they bring."""
        self.requests: list[str] = []
        self.unknown: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        super().__exit__(*error)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away, or are sent away, are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def handle_any(self) -> None:
        address = urlsplit(self.path)
        self.path, self.query = unquote(address.path), parse_qs(address.query)
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.break_off and self.server.break_off in self.path:
            self.rfile.read(1000)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.content = self._read()
        for pattern, action in _ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {self.path}")
            if match:
                with self.server.lock:
                    action(self, **match.groupdict())
                return
        if "owner/" in self.path:  # the client may ask for other things, and does without them
            self.server.unknown.append(f"{self.command} {self.path}")
        self._error(404, "EntryNotFound", "No such route")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while length := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, status: int, body: Any = b"", **headers: str) -> None:
        is_data = isinstance(body, bytes)
        content = body if is_data else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if is_data else "application/json"
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str, message: str, **headers: str) -> None:
        headers = {"X_Error_Code": code, "X_Error_Message": message, **headers}
        self._send(status, {"error": message}, **headers)

    def _is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, name: str, writing: bool = False) -> Repository | None:
        """The repository, if it exists and the client may see or change it; else it was told so."""
        repository = self.server.repositories.get(name)
        if repository is None or (not self._is_owner() and (repository.private or writing)):
            # Who may not see a repository is not told that it exists.
            self._error(401 if repository else 404, "RepoNotFound", "Repository not found")
            return None
        return repository

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(name)
        if repository is None:
            return None
        sha = repository.resolve(revision)
        if sha is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return sha, repository.commits[sha]

    # ---------------------------------------------------------------------------------- routes

    def who_am_i(self) -> None:
        if not self._is_owner():
            return self._error(401, "InvalidToken", "Invalid user token")
        self._send(200, {"name": "owner", "type": "user", "orgs": []})

    def create(self) -> None:
        if not self._is_owner():
            return self._error(401, "InvalidToken", "Invalid user token")
        asked = json.loads(self.content)
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        answer = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repositories:
            return self._send(409, {**answer, "error": "It exists"})
        self.server.repositories[name] = Repository(private)
        self._send(200, answer)

    def validate_card(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def create_ref(self, name: str, kind: str, revision: str) -> None:
        repository = self._repository(name, writing=True)
        if repository is None:
            return
        asked = json.loads(self.content or b"{}")
        tag = asked.get("tag")  # a tag is put on `revision`, a branch is called so
        start = revision if tag else asked.get("startingPoint") or "main"
        sha = repository.resolve(start)
        if sha is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {start}")
        if (tag or revision) in repository.refs:
            return self._error(409, "RefExists", f"{tag or revision} exists")
        repository.refs[tag or revision] = sha
        self._send(200, {})

    def preupload(self, name: str, revision: str) -> None:
        if self._repository(name, writing=True) is None:
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.content)["files"]
        ]
        self._send(200, {"files": files})

    def plan_uploads(self, name: str) -> None:
        if self._repository(name, writing=True) is None:
            return
        objects = [
            {
                **asked,
                "actions": {"upload": {"href": f"{self.server.url}/uploads/{asked['oid']}"}},
            }
            for asked in json.loads(self.content)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.content).hexdigest() != oid:
            return self._error(422, "BadUpload", "The content is not what was announced")
        self.server.uploads[oid] = self.content
        self._send(200)

    def commit(self, name: str, revision: str) -> None:
        repository = self._repository(name, writing=True)
        if repository is None:
            return
        if revision not in repository.refs:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = dict(repository.commits[repository.refs[revision]])
        for line in self.content.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
            elif kind != "header":
                return self._error(400, "BadRequest", f"Unknown operation {kind}")
        sha = repository.commit(revision, files)
        url = f"{self.server.url}/{name}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def describe(self, name: str, revision: str | None = None) -> None:
        found = self._files(name, revision or "main")
        if found:
            sha, files = found
            siblings = [{"rfilename": path} for path in sorted(files)]
            private = self.server.repositories[name].private
            about = {"id": name, "modelId": name, "sha": sha, "private": private, "tags": []}
            self._send(200, {**about, "downloads": 0, "likes": 0, "siblings": siblings})

    def list_files(self, name: str, revision: str, folder: str | None = None) -> None:
        found = self._files(name, revision)
        if found:
            start = f"{folder}/" if folder else ""
            paths = {path for path in found[1] if path.startswith(start)}
            if self.query.get("recursive", ["false"])[0].lower() != "true":
                paths = {start + path[len(start) :].split("/")[0] for path in paths}
            self._send(200, [_entry(path, found[1].get(path)) for path in sorted(paths)])

    def describe_files(self, name: str, revision: str) -> None:
        found = self._files(name, revision)
        if found:
            asked = parse_qs(self.content.decode()).get("paths", [])
            self._send(200, [_entry(path, found[1][path]) for path in asked if path in found[1]])

    def download(self, name: str, revision: str, path: str) -> None:
        found = self._files(name, revision)
        if found is None:
            return
        sha, files = found
        if path not in files:
            return self._error(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        content = files[path]
        headers = {"ETag": f'"{_etag(content)}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(200, content, **headers)
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(206, content[start : end + 1], **headers)


def _entry(path: str, content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {"type": "directory", "path": path, "oid": "0"}
    return {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


_NAME, _REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_READ = "(?:GET|HEAD) "
_KIND = "(?:models|datasets)"
_ROUTES = (
    (_READ + "/api/whoami-v2", _Handler.who_am_i),
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate_card),
    (f"POST /api/{_KIND}/{_NAME}/(?P<kind>branch|tag)/{_REVISION}", _Handler.create_ref),
    (f"POST /api/{_KIND}/{_NAME}/preupload/{_REVISION}", _Handler.preupload),
    (f"POST /api/{_KIND}/{_NAME}/commit/{_REVISION}", _Handler.commit),
    (f"POST /{_NAME}\\.git/info/lfs/objects/batch", _Handler.plan_uploads),
    ("PUT /uploads/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    (_READ + f"/api/{_KIND}/{_NAME}/tree/{_REVISION}(?:/(?P<folder>.+))?", _Handler.list_files),
    (_READ + f"/api/{_KIND}/{_NAME}(?:/revision/{_REVISION})?", _Handler.describe),
    (f"POST /api/{_KIND}/{_NAME}/paths-info/{_REVISION}", _Handler.describe_files),
    (_READ + f"/(?:datasets/)?{_NAME}/resolve/{_REVISION}/(?P<path>.+)", _Handler.download),
)
