"""The index in the forms of the old hub, for clients that still read `dist/v2`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from ..accounts import ANONYMOUS
from ..content import cards
from ..db import schema
from ..errors import NotFound
from ..http import hub_of
from ..hub import Hub
from ..index import base_models, resolver
from ..repos import commits, refs, repos
from ..repos.repos import Repo

__all__ = ["router"]

router = APIRouter(prefix="/dist/v2", include_in_schema=False)

_adapter, _repo = schema.adapter.c, schema.repo.c
_FACTS = ("repo_id", "oid", "type", "task", "subtask", "base_model", "model_type", "config", "config_id", "legacy_id")
_COLUMNS = [*(_adapter[name] for name in (*_FACTS, "card", "summary")), _repo.namespace, _repo.name, _repo.created]
# The old hub had nothing but adapters of this library that belong to a task and a base model.
_LISTED = (
    _adapter.visible,
    _adapter.library == "adapters",
    *(_adapter[name].is_not(None) for name in ("task", "subtask", "base_model", "config_id")),
)
Row = Mapping[str, Any]


@router.get("/architectures.json")
async def architectures(request: Request) -> dict[str, Any]:
    """Name of each architecture to its config."""
    async with hub_of(request).db.read() as conn:
        rows = await conn.execute(sa.select(schema.architecture.c.name, schema.architecture.c.config))
        return dict(list(rows))


@router.get("/all.json")
async def everything(request: Request) -> list[dict[str, Any]]:
    """All adapters."""
    async with hub_of(request).db.read() as conn:
        return [_info(row) for row in await _rows(conn)]


@router.get("/index/{model:path}.json")
async def index(request: Request, model: str) -> dict[str, Any]:
    """The adapters of a base model: task → subtask → config's id → organisation → file.

    `default` stands where the hub's resolver takes one of several without being told more.
    """
    places: dict[tuple[str, str], list[Row]] = defaultdict(list)
    async with hub_of(request).db.read() as conn:
        for row in await _rows(conn, base_models.same(model)):
            places[row["task"], row["subtask"]].append(row)
        if not places:
            raise NotFound(f"There is no adapter for {model!r}.")
        found: dict[str, Any] = defaultdict(dict)
        for (task, subtask), rows in places.items():
            found[task][subtask] = {**await _default(conn, rows), **await _configs(conn, rows)}
    return found


async def _default(conn: AsyncConnection, rows: list[Row]) -> dict[str, str]:
    chosen = await resolver.default_of(conn, rows) if len(rows) > 1 else (rows[0], "only")
    return {"default": _file(chosen[0])} if chosen else {}


async def _configs(conn: AsyncConnection, rows: Iterable[Row]) -> dict[str, Any]:
    groups: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["config_id"]][row["namespace"]].append(row)
    found: dict[str, Any] = {}
    for config_id, of_orgs in groups.items():
        files = {org: (await _default(conn, own)).get("default") for org, own in of_orgs.items()}
        found[config_id] = {"versions": {org: file for org, file in files.items() if file}}
    return found


@router.get("/adapters/{org}/{file}.json")
async def adapter(request: Request, org: str, file: str) -> dict[str, Any]:
    """One adapter with the addresses of its versions: here where the hub has the weights, else where they once were."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        named = sa.or_(_adapter.legacy_id == f"@{org}/{file}", _repo.key == f"{org}/{file}".lower())
        rows = await _rows(conn, sa.func.lower(_repo.namespace) == org.lower(), named)
        if not rows:
            raise NotFound(f"There is no adapter @{org}/{file}.")
        row = next((row for row in rows if _file(row) == f"adapters/{org}/{file}.json"), rows[0])
        repo = await repos.find(conn, ANONYMOUS, f"{row['namespace']}/{row['name']}")
        files = await _files(hub, conn, repo, row)
    default = str(row["card"].get("default_version") or repo.default_branch)
    return {
        "config_id": row["config_id"],
        "default_version": default if default in files else next(iter(files), default),
        "files": files,
        "info": {**_info(row), "description": row["summary"]},
    }


async def _rows(conn: AsyncConnection, *where: sa.ColumnElement[bool]) -> list[Row]:
    query = sa.select(*_COLUMNS).join(schema.repo, _repo.id == _adapter.repo_id).where(*_LISTED, *where)
    return [*(await conn.execute(query.order_by(_repo.key))).mappings()]


def _old_name(row: Row) -> tuple[str, str]:
    """Organisation and file. A card's word for it counts only in the organisation it names."""
    org, _, file = (row["legacy_id"] or "").lstrip("@").partition("/")
    return (org, file) if org == row["namespace"] and file else (row["namespace"], row["name"])


def _file(row: Row) -> str:
    return "adapters/{}/{}.json".format(*_old_name(row))


def _info(row: Row) -> dict[str, Any]:
    return {
        "source": "ah",
        "adapter_id": "@{}/{}".format(*_old_name(row)),
        "model_name": row["base_model"],
        "model_type": row["model_type"],
        "type": row["type"],
        "task": row["task"],
        "subtask": row["subtask"],
        "username": row["namespace"],
        "adapter_config": row["config"],
        "sha1_checksum": next((item.get("sha1") for item in _known_versions(row).values()), None),
    }


def _known_versions(row: Row) -> dict[str, Mapping[str, Any]]:
    """The versions that a card taken over from the old hub lists."""
    listed = row["card"].get("versions")
    items = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    return {name: item for item in items for name in cards.as_list(item.get("version"))[:1]}


async def _files(hub: Hub, conn: AsyncConnection, repo: Repo, row: Row) -> dict[str, Any]:
    known = _known_versions(row)
    found: dict[str, Any] = {}
    for ref in [*await refs.listing(conn, repo, refs.HEADS), *await refs.listing(conn, repo, refs.TAGS)]:
        version = ref["name"].removeprefix(refs.HEADS).removeprefix(refs.TAGS)
        manifest = await commits.manifest_of(conn, (await commits.find(conn, repo, ref["oid"])).tree)
        weights = next((entry for path, entry in manifest.items() if path.endswith("adapter.safetensors")), None)
        if weights is not None:
            path = f"{repo.full_name}/resolve/{ref['oid']}/{quote(weights.path)}"
            found[version] = {"url": hub.url(path), "sha256": weights.sha256}
        elif version in known:
            found[version] = {key: known[version].get(key) for key in ("url", "sha1", "sha256")}
        if version in found and "score" in known.get(version, {}):
            found[version]["score"] = known[version]["score"]
    return found
