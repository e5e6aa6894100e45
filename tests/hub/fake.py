"""The reading half of a hub, with repositories given as dicts and with answers of the index given by the test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


class FakeHub:
    """A server on this machine.

    `repos[id][branch]` are the files of a branch, `index[name]` are status and content of an answer about a name,
    `forged[path]` is sent instead of what is on record, `yanked[id]` is why it was taken back,
    `seen` are the requests: path, query and token.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Files]] = {}
        self.index: dict[str, tuple[int, Any]] = {}
        self.forged: Files = {}
        self.yanked: dict[str, str] = {}
        self.seen: list[tuple[str, dict[str, str], str | None]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self) -> FakeHub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Go away, as when the network does."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        self.close = lambda: None  # type: ignore[method-assign]

    def downloads(self) -> list[str]:
        """Paths of the files that were downloaded."""
        return sorted(
            {path.partition("/resolve/")[2].partition("/")[2] for path, *_ in self.seen if "/resolve/" in path}
        )


def commit_of(files: Mapping[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sibling(path: str, content: bytes) -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    lfs = {"lfs": {"sha256": sha256, "size": len(content), "pointerSize": 130}} if is_lfs(path) else {}
    return {"rfilename": path, "size": len(content), "blobId": git_oid(content), **lfs}


def tree_entry(path: str, content: bytes) -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    lfs = {"lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}} if is_lfs(path) else {}
    return {"type": "file", "path": path, "size": len(content), "oid": git_oid(content), **lfs}


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.hub.seen.append((path, query, self.headers.get("Authorization")))
        if path == "/api/v1/resolve":
            status, body = self.hub.index.get(query["name"], (404, {"error": "Nothing has this name.", "near": []}))
            return self.answer(status, body)
        if path == "/api/models":
            return self.answer(
                200, [self.info(name, "main") for name in self.hub.repos if query["filter"] == "adapters"]
            )
        words = path.strip("/").split("/")
        name = "/".join(words[2:4] if words[0] == "api" else words[:2])
        if name not in self.hub.repos:
            return self.refuse("RepoNotFound", "Repository not found")
        action, revision = [*(words[4:6] if words[0] == "api" else words[2:4]), "info", "main"][:2]
        if action == "refs":
            branches = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": "0" * 40} for b in self.hub.repos[name]]
            return self.answer(200, {"branches": branches, "tags": [], "converts": []})
        files = self.files(name, revision)
        if files is None:
            return self.refuse("RevisionNotFound", f"Invalid rev id: {revision}")
        if action == "tree":
            return self.answer(200, [tree_entry(*item) for item in files.items()])
        if action == "resolve":
            return self.file(files, "/".join(words[4:]))
        return self.answer(200, self.info(name, revision))

    def files(self, name: str, revision: str) -> Files | None:
        branches = self.hub.repos[name]
        commits = {commit_of(files): files for files in branches.values()}
        return branches.get(revision, commits.get(revision))

    def info(self, name: str, revision: str) -> dict[str, Any]:
        files = self.files(name, revision) or {}
        config = json.loads(files.get("adapter_config.json", b"{}"))
        return {
            "id": name,
            "author": name.partition("/")[0],
            "sha": commit_of(files),
            "tags": ["adapters", "adapterhub:sentiment/sst-2"],
            "config": {"adapters": {"model_name": config.get("model_name")}},
            "siblings": [sibling(*item) for item in files.items()],
            **({"yanked": self.hub.yanked[name]} if name in self.hub.yanked else {}),
        }

    def file(self, files: Files, path: str) -> None:
        if path not in files:
            return self.refuse("EntryNotFound", "Entry not found")
        entry = sibling(path, files[path])
        etag = entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"]
        headers = {"X-Repo-Commit": commit_of(files), "ETag": f'"{etag}"'}
        return self.send(200, self.hub.forged.get(path, files[path]), headers)

    def refuse(self, code: str, message: str) -> None:
        self.send(404, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def answer(self, status: int, body: Any) -> None:
        self.send(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
