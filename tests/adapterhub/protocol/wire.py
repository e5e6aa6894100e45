"""The protocol without its client: commits, files and large files sent by hand."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import httpx


def text(size: int, seed: str = "") -> bytes:
    """A text file that no two places of are alike."""
    line = f"{seed}%011d\n"
    return "".join(line % i for i in range(-(-size // 12))).encode()[:size]


def create(client: httpx.Client, repo: str, **body: Any) -> str:
    """Makes a repository; returns its name."""
    namespace, name = repo.split("/")
    client.post("/api/repos/create", json={"name": name, "organization": namespace, **body}).raise_for_status()
    return repo


def file(path: str, data: bytes) -> dict[str, Any]:
    """A line of a commit: a file with its bytes."""
    content = base64.b64encode(data).decode()
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}


def large(path: str, data: bytes) -> dict[str, Any]:
    """A line of a commit: a file whose bytes were sent before."""
    oid = hashlib.sha256(data).hexdigest()
    return {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid, "size": len(data)}}


def remove(path: str) -> dict[str, Any]:
    """A line of a commit: a file that goes."""
    return {"key": "deletedFile", "value": {"path": path}}


def post_commit(
    client: httpx.Client,
    repo: str,
    *lines: dict[str, Any],
    title: str = "A commit",
    parent: str | None = None,
    revision: str = "main",
    **query: str,
) -> httpx.Response:
    """Sends a commit."""
    header = {"summary": title, "description": "", **({"parentCommit": parent} if parent else {})}
    body = "".join(json.dumps(line) + "\n" for line in ({"key": "header", "value": header}, *lines))
    headers = {"Content-Type": "application/x-ndjson"}
    address = f"/api/models/{repo}/commit/{revision.replace('/', '%2F')}"
    return client.post(address, content=body, headers=headers, params=query)


def commit(client: httpx.Client, repo: str, *lines: dict[str, Any], **options: Any) -> str:
    """Makes a commit; returns its id."""
    answer = post_commit(client, repo, *lines, **options)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["commitOid"])


def batch(client: httpx.Client, repo: str, data: bytes, *, parts: bool = True, **changes: Any) -> httpx.Response:
    """Announces a large file.

    Args:
        parts: whether the client can send it in parts.
        changes: what is announced instead of the truth.
    """
    announced = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), **changes}
    transfers = ["basic", "multipart"] if parts else ["basic"]
    body = {"operation": "upload", "transfers": transfers, "objects": [announced], "hash_algo": "sha256"}
    return client.post(f"/{repo}.git/info/lfs/objects/batch", json=body)


def upload_of(client: httpx.Client, repo: str, data: bytes, *, parts: bool = True) -> dict[str, Any]:
    """Where a large file is to be sent."""
    answer = batch(client, repo, data, parts=parts)
    assert answer.status_code == 200, answer.text
    action: dict[str, Any] = answer.json()["objects"][0]["actions"]["upload"]
    return action


def send(client: httpx.Client, repo: str, data: bytes) -> str:
    """Uploads a large file; returns its SHA-256."""
    httpx.put(upload_of(client, repo, data, parts=False)["href"], content=data, trust_env=False).raise_for_status()
    return hashlib.sha256(data).hexdigest()


def history(client: httpx.Client, repo: str, revision: str = "main") -> list[str]:
    """Ids of the commits, the newest first."""
    shown = client.get(f"/api/models/{repo}/commits/{revision}", params={"limit": 1000}).json()
    return [commit["id"] for commit in shown]
