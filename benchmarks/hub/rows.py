"""Rows of a large hub that never was: many adapters spread over the taxonomy as real ones are, most in few places."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapterhub import names
from adapterhub.data import load
from adapterhub.db import schema
from adapterhub.db.schema import now
from adapterhub.facts import configs
from adapterhub.index import own_names

LARGEST, SMALL = ("sentiment", "sst-2"), ("qa", "squad1")  # places of a sixth and of a thousandth of the adapters
MODELS = (
    ("bert-base-uncased", "bert"),
    ("bert-base-multilingual-cased", "bert"),
    ("roberta-base", "roberta"),
    ("xlm-roberta-base", "xlm-roberta"),
    ("distilbert-base-uncased", "distilbert"),
    ("gpt2", "gpt2"),
    ("meta-llama/Llama-3.1-8B", "llama"),
    ("mistralai/Mistral-7B-v0.3", "mistral"),
    ("Qwen/Qwen3-8B", "qwen3"),
    ("google/flan-t5-base", "t5"),
)
_BATCH = 2000
_TREE = {"oid": "7" * 40, "manifest": {"README.md": ["0" * 64, "0" * 40, 1000, 0]}}  # of all of them


async def fill(conn: AsyncConnection, count: int, *, seed: int = 0) -> None:
    """Adds `count` repositories of one commit, with their rows of `adapter`, `adapter_tag` and the full-text index."""
    chance = random.Random(seed)
    places = [(row["type"], row["task"], row["id"]) for row in load("taxonomy.json")["subtasks"]]
    places.sort(key=lambda place: place[1:] != LARGEST)
    weights = [1 / (rank + 1) for rank in range(len(places))]
    owners = [f"org{i}" for i in range(max(count // 200, 1))]
    ids = {name: await _account(conn, name) for name in owners}
    await conn.execute(sa.insert(schema.tree).values(**_TREE))
    for start in range(0, count, _BATCH):
        repos, adapters, tags, texts = [], [], [], []
        for number in range(start, min(start + _BATCH, count)):
            owner = chance.choice(owners)
            place = chance.choices(places, weights)[0]
            repo, adapter = _rows(chance, number, owner, ids[owner], place)
            repos.append(repo)
            adapters.append(adapter)
            tags += [{"tag": tag, "repo_id": repo["id"]} for tag in adapter["tags"]]
            texts.append({"rowid": repo["id"], "text": adapter["search"]})
        commits = [_commit(adapter, repo) for adapter, repo in zip(adapters, repos)]
        heads = [{"repo_id": c["repo_id"], "oid": c["oid"], "name": "refs/heads/main"} for c in commits]
        for table, rows in (
            (schema.repo, repos),
            (schema.commit, commits),
            (schema.ref, heads),
            (schema.adapter, adapters),
            (schema.adapter_tag, tags),
        ):
            await conn.execute(sa.insert(table), rows)
        if conn.dialect.name == "sqlite":
            await conn.execute(sa.text("INSERT INTO adapter_fts (rowid, text) VALUES (:rowid, :text)"), texts)
        await own_names.learn(conn, [f"{repo['namespace']}/{repo['name']}" for repo in repos])


async def _account(conn: AsyncConnection, name: str) -> int:
    values = {"name": name, "name_key": names.key(name), "kind": "org"}
    result = await conn.execute(sa.insert(schema.account).values(**values))
    return int(result.inserted_primary_key[0])  # type: ignore[index]


def _commit(adapter: dict[str, Any], repo: dict[str, Any]) -> dict[str, Any]:
    made = {"oid": adapter["oid"], "tree": _TREE["oid"], "author": repo["namespace"], "title": "Add files"}
    return {"repo_id": repo["id"], **made, "date": repo["updated"]}


def _rows(
    chance: random.Random, number: int, owner: str, owner_id: int, place: tuple[str, str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    kind, task, subtask = place
    base, model_type = chance.choices(MODELS, [10, 9, 6, 5, 4, 3, 6, 3, 3, 1])[0]
    config_name = chance.choice(list(configs.named()))
    config = configs.named()[config_name]
    method = configs.method(config)
    name = f"{model_type}-{task}-{subtask}-{config_name}-{number}".replace("+", "p").replace('"', "")
    moment = now() - timedelta(minutes=number)
    downloads = int(chance.paretovariate(1.0))
    tags = ["adapters", "adapter-transformers", model_type, f"adapterhub:{task}/{subtask}", f"base_model:{base}"]
    repo = {
        "id": number + 1,
        "uid": f"{number:024x}",
        "owner_id": owner_id,
        "namespace": owner,
        "name": name,
        "key": f"{owner}/{name}".lower(),
        "name_key": names.key(name),
        "downloads": downloads,
        "created": moment,
        "updated": moment,
    }
    adapter = {
        "repo_id": number + 1,
        "oid": f"{number:040x}",
        "type": kind,
        "task": task,
        "subtask": subtask,
        "library": "adapters",
        "library_name": "adapter-transformers",
        "method": method,
        "config_name": config_name,
        "config_id": configs.config_id(config),
        "config": dict(config),
        "base_model": base,
        "model_type": model_type,
        "reduction_factor": chance.choice((2.0, 16.0, 64.0)) if method in ("bottleneck", "parallel") else None,
        "rank": chance.choice((4, 8, 64)) if method in ("lora", "dora") else None,
        "head_type": chance.choice(("classification", "tagging", None)),
        "parameters": chance.randrange(10_000, 5_000_000),
        "bytes": chance.randrange(40_000, 20_000_000),
        "license": chance.choice(("apache-2.0", "mit", "cc-by-4.0", None)),
        "tags": tags,
        "title": name,
        "search": f"{owner}/{name} {task} {subtask} {base} {config_name} {' '.join(tags)}".lower(),
        "updated": moment,
        "downloads": downloads,
    }
    return repo, adapter
