"""Repositories and adapters put into the tables by hand: no files, no commits made, no derivation."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapterhub import names
from adapterhub.db import schema
from adapterhub.db.engine import insert, insert_missing

DAY = datetime(2026, 1, 1, tzinfo=timezone.utc)


def oid_of(full_name: str, number: int = 0) -> str:
    """The commit that `add` makes; `number` 1 is the one of branch `old`."""
    return hashlib.sha1(f"{full_name} {number}".encode()).hexdigest()


async def add(
    conn: AsyncConnection,
    full_name: str,
    *,
    private: bool = False,
    yanked: str | None = None,
    head_yanked: bool = False,
    day: int = 0,
    scores: dict[str, float] | None = None,
    branches: dict[str, int] | None = None,
    **columns: Any,
) -> int:
    """A repository with one adapter; `columns` are those of the table `adapter`."""
    namespace, name = full_name.split("/")
    owner = await _org(conn, namespace)
    repo_id = await insert(
        conn,
        schema.repo,
        uid=oid_of(full_name)[:24],
        owner_id=owner,
        namespace=namespace,
        name=name,
        key=full_name.lower(),
        name_key=names.key(name),
        private=private,
        yanked=yanked,
        created=DAY + timedelta(days=day),
    )
    await insert_missing(conn, schema.tree, [{"oid": "0" * 40, "manifest": {}}])
    for branch, number in {"main": 0, **(branches or {})}.items():
        oid = oid_of(full_name, number)
        row = {
            "repo_id": repo_id,
            "oid": oid,
            "tree": "0" * 40,
            "author": "x",
            "title": "x",
            "message": "",
            "date": DAY,
        }
        await insert_missing(conn, schema.commit, [row])
        await conn.execute(sa.insert(schema.ref).values(repo_id=repo_id, name=f"refs/heads/{branch}", oid=oid))
    if head_yanked:
        values = {"repo_id": repo_id, "oid": oid_of(full_name), "reason": "It is wrong.", "actor": "x"}
        await conn.execute(sa.insert(schema.yank).values(**values))
    visible = not private and yanked is None and not head_yanked
    given = {"library": "adapters", "bytes": 0, "updated": DAY, "visible": visible, **columns}
    await conn.execute(sa.insert(schema.adapter).values(repo_id=repo_id, oid=oid_of(full_name), **given))
    for metric, value in (scores or {}).items():
        place = {"task": given.get("task"), "subtask": given.get("subtask"), "source": "card"}
        await conn.execute(sa.insert(schema.evaluation).values(repo_id=repo_id, metric=metric, value=value, **place))
    return repo_id


async def _org(conn: AsyncConnection, name: str) -> int:
    key = names.key(name)
    found = (await conn.execute(sa.select(schema.account.c.id).where(schema.account.c.name_key == key))).scalar()
    return found or await insert(conn, schema.account, name=name, name_key=key, kind="org")


async def add_place(
    conn: AsyncConnection, task: str, subtask: str, metric: str | None = None, higher_is_better: bool | None = None
) -> None:
    """A data set of the taxonomy."""
    await insert_missing(conn, schema.task, [{"type": "text_task", "id": task, "displayname": task}])
    row = {"task": task, "id": subtask, "type": "text_task", "metric": metric, "higher_is_better": higher_is_better}
    await insert_missing(conn, schema.subtask, [row])
