"""Repositories for a running hub, put there by plain HTTP."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx

from tests.adapterhub.index.files import safetensors

BASE, WIDTH = "bert-base-uncased", 8
CARD = """---
tags: [adapter-transformers, "adapterhub:sentiment/sst-2"]
datasets: [glue]
language: [en]
license: apache-2.0
base_model: bert-base-uncased
results:
- {dataset: glue, split: validation, metric: accuracy, value: 0.9}
---
# Film reviews

Tells good from bad.
"""
CONFIG = {
    "config": {
        "mh_adapter": False,
        "output_adapter": True,
        "reduction_factor": 4,
        "non_linearity": "relu",
        "original_ln_before": True,
    },
    "model_name": BASE,
    "model_type": "bert",
    "model_class": "BertAdapterModel",
    "hidden_size": WIDTH,
    "name": "reviews",
}


def weights() -> bytes:
    """The tensors of a bottleneck in two layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        start = f"bert.encoder.layer.{layer}.output.adapters.reviews"
        shapes[f"{start}.adapter_down.0.weight"] = (WIDTH // 4, WIDTH)
        shapes[f"{start}.adapter_down.0.bias"] = (WIDTH // 4,)
        shapes[f"{start}.adapter_up.weight"] = (WIDTH, WIDTH // 4)
        shapes[f"{start}.adapter_up.bias"] = (WIDTH,)
    return safetensors(shapes)


def adapter_files(**more: bytes) -> dict[str, bytes]:
    """The files of an adapter that all checks let pass."""
    return {
        "README.md": CARD.encode(),
        "adapter_config.json": json.dumps(CONFIG).encode(),
        "adapter.safetensors": weights(),
        **more,
    }


def lines(files: dict[str, bytes], title: str = "Add files") -> bytes:
    """The body of a commit that adds files."""
    items: list[dict[str, Any]] = [{"key": "header", "value": {"summary": title}}]
    for path, data in files.items():
        content = base64.b64encode(data).decode()
        items.append({"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}})
    return "\n".join(map(json.dumps, items)).encode()


def create(client: httpx.Client, name: str, *, private: bool = False) -> None:
    """An empty repository."""
    client.post("/api/repos/create", json={"name": name, "private": private}).raise_for_status()


def commit(client: httpx.Client, name: str, body: bytes, revision: str = "main", **query: str) -> httpx.Response:
    """Sends the body of a commit."""
    headers = {"Content-Type": "application/x-ndjson"}
    return client.post(f"/api/models/{name}/commit/{revision}", content=body, params=query, headers=headers)


def push(client: httpx.Client, name: str, *, private: bool = False, **more: bytes) -> str:
    """A repository with an adapter; returns its commit."""
    create(client, name, private=private)
    answer = commit(client, name, lines(adapter_files(**more))).raise_for_status()
    oid: str = answer.json()["commitOid"]
    return oid
