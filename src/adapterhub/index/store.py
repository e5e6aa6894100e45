"""Records in the database, put there with each commit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..db import schema
from ..db.engine import insert_missing
from ..repos import repos
from . import own_names, search
from .record import Record

if TYPE_CHECKING:
    from ..repos.commits import Commit
    from ..repos.repos import Repo

__all__ = ["put", "refresh_visible", "remove", "rename"]

_DERIVED = (schema.adapter_tag, schema.dependency, schema.evaluation, schema.adapter)


async def put(conn: AsyncConnection, repo: Repo, commit: Commit, record: Record) -> None:
    """Replaces what is known of a repository by the record of its newest commit.

    Raises:
        RepoNotFound: it was deleted meanwhile.
    """
    repo = await repos.by_id(conn, repo.id)  # it may have been hidden or renamed since the caller read it
    await remove(conn, repo.id)
    row = {
        "repo_id": repo.id,
        "oid": commit.oid,
        "updated": commit.date,
        "downloads": repo.downloads,
        "trending": repo.trending,
        **record.columns(),
    }
    row["search"] = f"{repo.full_name.lower()} {row['search']}"
    await conn.execute(sa.insert(schema.adapter).values(_storable(schema.adapter, row)))
    many: list[tuple[sa.Table, list[dict[str, Any]]]] = [
        (schema.adapter_tag, [{"tag": tag} for tag in record.tags]),
        (schema.dependency, [{"target": target, "note": note} for target, note in record.dependencies.items()]),
        (schema.evaluation, [{**item._asdict(), "source": "card"} for item in record.evaluations]),
    ]
    for table, rows in many:
        await insert_missing(conn, table, [_storable(table, {"repo_id": repo.id, **row}) for row in rows])
    await search.put(conn, repo.id, _clean(row["search"]))
    await own_names.learn(conn, [repo.full_name])
    await refresh_visible(conn, repo.id)


def _storable(table: sa.Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as every database takes it, whatever files say: clean, and no text longer than its column."""

    def fitting(name: str, value: Any) -> Any:
        return value[: getattr(table.c[name].type, "length", None)] if isinstance(value, str) else value

    return {name: fitting(name, value) for name, value in _clean(row).items()}


def _clean(value: Any) -> Any:
    """A value without what PostgreSQL refuses in texts and JSON: NUL, halves of characters, numbers that are none."""
    match value:
        case str():
            return value.replace("\0", "").encode("utf-8", "replace").decode()
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {_clean(key): _clean(item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
    return value


async def refresh_visible(conn: AsyncConnection, repo_id: int) -> None:
    """Sets what the index copies: whether it is a public adapter, and neither it nor its newest commit is yanked."""
    adapter = schema.adapter.c
    public = sa.exists().where(
        schema.repo.c.id == repo_id, sa.not_(schema.repo.c.private), schema.repo.c.yanked.is_(None)
    )
    newest = sa.exists().where(schema.yank.c.repo_id == adapter.repo_id, schema.yank.c.oid == adapter.oid)
    visible = sa.and_(adapter.library != "other", public, ~newest)
    await conn.execute(sa.update(schema.adapter).where(adapter.repo_id == repo_id).values(visible=visible))


async def rename(conn: AsyncConnection, repo_id: int, full_name: str) -> None:
    """Makes a repository found by its new name, and no longer by its old one."""
    same = schema.adapter.c.repo_id == repo_id
    text = (await conn.execute(sa.select(schema.adapter.c.search).where(same))).scalar()
    if text is not None:
        renamed = f"{full_name.lower()} {text.partition(' ')[2]}"
        await conn.execute(sa.update(schema.adapter).where(same).values(search=renamed))
        await search.remove(conn, repo_id)
        await search.put(conn, repo_id, renamed)
        await own_names.learn(conn, [full_name])


async def remove(conn: AsyncConnection, repo_id: int) -> None:
    """Forgets what is known of a repository."""
    await search.remove(conn, repo_id)
    for table in _DERIVED:
        await conn.execute(sa.delete(table).where(table.c.repo_id == repo_id))
