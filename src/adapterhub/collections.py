"""Collections: named lists of adapters, with a note and what to do with them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from . import accounts, names
from .accounts import Principal
from .db import schema
from .db.engine import insert
from .db.schema import now
from .errors import BadRequest, NotFound
from .index import search
from .index.visible import visible_to
from .repos import repos

__all__ = ["SETUPS", "Collection", "delete", "find", "listed", "put"]

SETUPS = ("", "Stack", "Parallel", "Average")  # how its adapters are used together; "": each by itself
_MOST = 50  # adapters of one

_collection, _collected, _owner = schema.collection.c, schema.collected.c, schema.account.c


@dataclass(frozen=True)
class Collection:
    """A collection as somebody sees it.

    Attributes:
        namespace, name: by which it is found.
        rows: its adapters that they may see, as `search.query` gives them, in its order.
    """

    namespace: str
    name: str
    title: str
    note: str
    setup: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def full_name(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


async def put(
    conn: AsyncConnection,
    principal: Principal,
    namespace: str,
    name: str,
    *,
    title: str,
    items: Sequence[str],
    note: str = "",
    setup: str = "",
) -> None:
    """Makes a collection, or replaces all of one.

    Raises:
        BadRequest: a name, the set-up or the number of adapters is not allowed.
        Unauthorized, Forbidden: the caller may not write in this namespace.
        NotFound: there is no such namespace, or no such adapter that the caller may see.
    """
    _require_writer(principal, namespace)
    if setup not in SETUPS:
        raise BadRequest(f"setup={setup[:40]!r} is not one of {', '.join(map(repr, SETUPS))}.")
    items = list(dict.fromkeys(items))
    if not 0 < len(items) <= _MOST:
        raise BadRequest(f"A collection has 1 to {_MOST} adapters; {len(items)} were given.")
    name, owner = names.check_repo_name(name), await accounts.find_account(conn, namespace)
    found = [await repos.find(conn, principal, item) for item in items]
    own = (_collection.owner_id == owner["id"], _collection.key == name.lower())
    values = {"name": name, "title": title.strip()[:200] or name, "note": note.strip()[:5000], "setup": setup}
    known = (await conn.execute(sa.select(_collection.id).where(*own))).scalar()
    if known is None:
        known = await insert(conn, schema.collection, owner_id=owner["id"], key=name.lower(), updated=now(), **values)
    else:
        await conn.execute(sa.update(schema.collection).where(*own).values(updated=now(), **values))
        await conn.execute(sa.delete(schema.collected).where(_collected.collection_id == known))
    places = {repo.id: place for place, repo in reversed([*enumerate(found)])}
    rows = [{"collection_id": known, "repo_id": repo_id, "position": place} for repo_id, place in places.items()]
    await conn.execute(sa.insert(schema.collected), rows)


def _require_writer(principal: Principal, namespace: str) -> None:
    if not principal.may_write(namespace, namespace):
        repos.refuse(principal, f"You don't have the rights to change collections of {namespace!r}")


async def find(conn: AsyncConnection, principal: Principal, namespace: str, name: str) -> Collection:
    """A collection with those of its adapters that the caller may see.

    Raises:
        NotFound: there is none of this name.
    """
    row = await _row(conn, namespace, name)
    query = (
        sa.select(_collected.repo_id)
        .join(schema.adapter, schema.adapter.c.repo_id == _collected.repo_id)
        .where(_collected.collection_id == row["id"], visible_to(principal))
        .order_by(_collected.position)
    )
    rows = await search.rows_of(conn, (await conn.execute(query)).scalars().all())
    rows = [{**item, "reason": ""} for item in rows]
    return Collection(row["namespace"], row["name"], row["title"], row["note"], row["setup"], rows)


async def delete(conn: AsyncConnection, principal: Principal, namespace: str, name: str) -> None:
    """Deletes a collection; its adapters stay.

    Raises:
        NotFound: there is none of this name.
        Unauthorized, Forbidden: the caller may not write in this namespace.
    """
    _require_writer(principal, namespace)
    row = await _row(conn, namespace, name)
    await conn.execute(sa.delete(schema.collection).where(_collection.id == row["id"]))


async def _row(conn: AsyncConnection, namespace: str, name: str) -> sa.RowMapping:
    query = (
        sa.select(schema.collection, _owner.name.label("namespace"))
        .join(schema.account, _owner.id == _collection.owner_id)
        .where(_owner.name_key == names.key(namespace), sa.func.lower(_owner.name) == namespace.lower())
        .where(_collection.key == name.lower())
    )
    row = (await conn.execute(query)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no collection {namespace}/{name}. All of them are listed at /collections.")
    return row


async def listed(conn: AsyncConnection, namespace: str | None = None, limit: int = 100) -> Sequence[sa.RowMapping]:
    """Collections, those that changed last first: `namespace`, `name`, `title` and `note`."""
    query = sa.select(_owner.name.label("namespace"), _collection.name, _collection.title, _collection.note).join(
        schema.account, _owner.id == _collection.owner_id
    )
    if namespace is not None:
        query = query.where(_owner.name == namespace)
    order = (_collection.updated.desc(), _collection.id.desc())
    return (await conn.execute(query.order_by(*order).limit(limit))).mappings().all()
