"""A stand-in for the hub's HTTP API: repositories in memory, one commit on top of the other.

What it answers follows the requests that huggingface_hub sends: whoami, create, preupload, LFS
batch, commit, info, tree, resolve.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    """All commits of one repository: file contents by path, by commit."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = "0" * 40

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.head if revision == "main" else revision)


@dataclass
class Hub:
    """What the server holds, and the requests it got."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answered(b"")

    def do_HEAD(self) -> None:
        self._answered(b"")

    def do_POST(self) -> None:
        self._answered(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_PUT(self) -> None:
        self._answered(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answered(self, body: bytes) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["lfs", "upload"]:
            self.hub.blobs[parts[2]] = body
            return self._send(200, b"{}")
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if parts[0] == "api" and parts[1] == "models":
            return self._api("/".join(parts[2:4]), parts[4:], body)
        if parts[2:4] == ["info", "lfs"]:
            return self._lfs(json.loads(body))
        if parts == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if "resolve" not in parts:
            return self._fail(404, "", f"{path} is not among what this stand-in knows")
        return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    @property
    def _has_token(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _create(self, asked: dict[str, Any]) -> None:
        if not self._has_token:
            return self._fail(401, "", "Invalid username or password.")
        name = f"{asked.get('organization') or 'ada'}/{asked['name']}"
        if name.split("/")[0] != "ada":
            return self._fail(403, "", "You don't have the rights to create a model here")
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories.setdefault(name, Repository(bool(private)))
        return self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def _api(self, name: str, rest: list[str], body: bytes) -> None:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._has_token):
            return self._fail(404 if self._has_token else 401, "RepoNotFound", "Not found")
        if rest[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            return self._json({"files": modes})
        if rest[:1] == ["commit"]:
            return self._commit(name, found, body)
        revision = rest[1] if len(rest) > 1 else "main"
        files = found.files(revision)
        if files is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        if rest[:1] == ["tree"]:
            return self._json([self._entry(path, data) for path, data in files.items()])
        sha = found.head if revision == "main" else revision
        siblings = [{"rfilename": path} for path in files]
        return self._json({"id": name, "modelId": name, "sha": sha, "siblings": siblings,
                           "private": found.private, "tags": []})  # fmt: skip

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha1(data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": digest}
        if path.endswith(".safetensors"):
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
        return entry

    def _commit(self, name: str, found: Repository, body: bytes) -> None:
        if not self._has_token:
            return self._fail(401, "", "Invalid token")
        files = dict(found.commits.get(found.head, {}))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        found.head = hashlib.sha1(found.head.encode() + body).hexdigest()
        found.commits[found.head] = files
        url = f"{self.hub.url}/{name}/commit/{found.head}"
        return self._json({"commitUrl": url, "commitOid": found.head, "success": True})

    def _lfs(self, asked: dict[str, Any]) -> None:
        objects = [
            {
                **{key: entry[key] for key in ("oid", "size")},
                "actions": {"upload": {"href": f"{self.hub.url}/lfs/upload/{entry['oid']}"}},
            }
            for entry in asked["objects"]
        ]
        return self._json({"transfer": "basic", "objects": objects})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._has_token):
            return self._fail(404 if self._has_token else 401, "RepoNotFound", "Not found")
        files = found.files(revision)
        if files is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        sha = found.head if revision == "main" else revision
        if path not in files:
            return self._fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        data = files[path]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self._send(200, data, {"X-Repo-Commit": sha, "ETag": etag})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str, text: str, more: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Code": code} if code else {}
        message = {"X-Error-Message": text}
        self._send(
            status, json.dumps({"error": text}).encode(), {**headers, **message, **(more or {})}
        )

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
