"""Quotas: who pays for which bytes, and whether there is room for more.

The owner of a repository pays for what its branches and tags name, and for what its members upload. What anyone else
uploads for a pull request they pay for themselves until it is merged: `blob_use.payer_id` names them. Uploads in parts
count from when they are announced until they are complete, given up or expired: `upload.parts["payer"]` names who pays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .db import schema
from .db.schema import now
from .errors import Forbidden

if TYPE_CHECKING:
    from .hub import Hub

__all__ = ["Usage", "arriving", "require_room", "require_room_for_sizes", "usage"]

_use, _repo, _blob, _upload = schema.blob_use.c, schema.repo.c, schema.blob.c, schema.upload.c
_BATCH = 1000


@dataclass(frozen=True)
class Usage:
    """What an account pays for.

    Attributes:
        name: the account's.
        used: bytes that it pays for.
        quota: bytes that it may pay for: its own limit, else the hub's.
    """

    name: str
    used: int
    quota: int


async def usage(hub: Hub, conn: AsyncConnection, account_id: int, *, but: Collection[str] = ()) -> Usage:
    """What an account pays for, and may pay for.

    Args:
        but: open uploads of blobs with these SHA-256 are left out.
    """
    bytes_ = sa.select(sa.func.coalesce(sa.func.sum(_blob.size), 0)).where(_blob.sha256.in_(_paid_by(account_id)))
    account = schema.account.c
    query = sa.select(account.name, account.quota, bytes_.scalar_subquery()).where(account.id == account_id)
    name, quota, used = (await conn.execute(query)).one()
    coming = sa.select(sa.func.coalesce(sa.func.sum(_upload.size), 0)).where(
        *_open(account_id), _upload.oid.not_in(but)
    )
    used += (await conn.execute(coming)).scalar_one()
    return Usage(name, int(used), hub.settings.quota if quota is None else quota)


def _open(account_id: int) -> tuple[sa.ColumnElement[bool], ...]:
    """Which uploads in parts an account pays for."""
    return _upload.expires > now(), _upload.parts["payer"].as_integer() == account_id


def _paid_by(account_id: int) -> sa.CompoundSelect[tuple[Any]]:
    """The blobs that an account pays for, each once."""
    own = sa.select(_repo.id).where(_repo.owner_id == account_id)
    return sa.union(
        sa.select(_use.sha256).where(_use.repo_id.in_(own), _use.payer_id.is_(None)),
        sa.select(_use.sha256).where(_use.payer_id == account_id),
    )


async def require_room(hub: Hub, conn: AsyncConnection, account_id: int, sizes: Mapping[str, int]) -> None:
    """Lets pass what an account has room for. What it pays for already needs none.

    Args:
        sizes: of each blob, by its SHA-256.

    Raises:
        Forbidden: its quota is used up.
    """
    found = await usage(hub, conn, account_id, but=sizes.keys())
    if found.used + sum(sizes.values()) <= found.quota:
        return
    new = dict(sizes)
    mine, names = _paid_by(account_id).subquery().c.sha256, list(sizes)
    for start in range(0, len(names), _BATCH):
        query = sa.select(mine).where(mine.in_(names[start : start + _BATCH]))
        for sha256 in (await conn.execute(query)).scalars():
            del new[sha256]
    _refuse(found, sum(new.values()))


async def require_room_for_sizes(hub: Hub, conn: AsyncConnection, account_id: int, sizes: Collection[int]) -> None:
    """As `require_room`, for files of which the size alone is known: one that the account pays for may be the same.

    Raises:
        Forbidden: its quota is used up, whatever the files are.
    """
    found = await usage(hub, conn, account_id)
    if found.used + sum(sizes) <= found.quota:
        return
    mine = sa.select(_blob.size).where(_blob.sha256.in_(_paid_by(account_id)), _blob.size.in_(set(sizes)))
    coming = sa.select(_upload.size).where(*_open(account_id))
    known = {*(await conn.execute(mine)).scalars(), *(await conn.execute(coming)).scalars()}
    _refuse(found, sum(size for size in sizes if size not in known))


@asynccontextmanager
async def arriving(hub: Hub, account_id: int, sha256: str, size: int) -> AsyncIterator[None]:
    """Counts bytes while they come to this process: many files that come at once must fit together.

    Raises:
        Forbidden: the account's quota is used up.
    """
    key = hub.settings.data, account_id
    async with hub.db.read() as conn:
        await require_room(hub, conn, account_id, {sha256: size, "others": _arriving[key]})
    _arriving[key] += size
    try:
        yield
    finally:
        _arriving[key] -= size


_arriving: Counter[tuple[Path, int]] = Counter()


def _refuse(found: Usage, new: int) -> None:
    if new and found.used + new > found.quota:
        raise Forbidden(
            f"{found.name!r} holds {found.used} of {found.quota} bytes, so {new} more do not fit. Delete repositories "
            "that are no longer needed, or ask the hub's administrator for a larger quota."
        )
