"""Adapters as they are uploaded: a card, a config and weights."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Mapping
from typing import Any

from adapterhub import accounts
from adapterhub.changes import committing, manage
from adapterhub.changes.committing import Put
from adapterhub.errors import RepoNotFound
from adapterhub.facts.configs import named
from adapterhub.hub import Hub
from adapterhub.ingest import ingest
from adapterhub.repos import repos

ROWS = 64


def header(rows: int = ROWS) -> bytes:
    """The JSON at the beginning of the weights."""
    tensor = {"dtype": "F32", "shape": [rows, 768], "data_offsets": [0, rows * 768 * 4]}
    return json.dumps({"bert.encoder.layer.0.output.adapters.a.adapter_up.weight": tensor}).encode()


def weights(rows: int = ROWS, fill: bytes = b"\0\0\0\0") -> bytes:
    """A safetensors file with one matrix."""
    return struct.pack("<Q", len(header(rows))) + header(rows) + fill * rows * 768


def adapter(
    *,
    task: str = "sentiment/sst-2",
    model: str = "bert-base-uncased",
    config: str = "seq_bn",
    front: str = "",
    fill: bytes = b"\0\0\0\0",
) -> dict[str, bytes]:
    """The files of an adapter."""
    card = f"---\nlicense: mit\ntags:\n- adapterhub:{task}\nbase_model: {model}\n{front}---\n# Title\n\nA sentence.\n"
    facts = {"config": named()[config], "model_name": model, "model_type": "bert", "hidden_size": 768, "name": "a"}
    return {
        "README.md": card.encode(),
        "adapter_config.json": json.dumps(facts).encode(),
        "adapter.safetensors": weights(fill=fill),
    }


async def push(
    hub: Hub, full_name: str, files: Mapping[str, bytes], *, user: str = "alice", private: bool = False
) -> str:
    """Makes a repository, if it is not there, and commits files to it; returns the commit."""
    async with hub.db.read() as conn:
        me: Any = await accounts.principal(hub.db, (await accounts.find_account(conn, user))["id"])
        try:
            repo = await repos.find(conn, me, full_name)
        except RepoNotFound:
            repo = None
    repo = repo or await manage.create(hub, me, full_name, private=private)
    puts = []
    for path, data in files.items():
        blob = await ingest(hub, _once(data), repo_id=repo.id, name=path)
        puts.append(Put(path, blob.sha256, lfs=path.endswith(".safetensors")))
    return (await committing.commit(hub, me, repo, "main", puts, title="Add")).oid


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
