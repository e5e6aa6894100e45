"""The first start: tables, taxonomy, and a key with which the first administrator is made."""

from __future__ import annotations

import hashlib
import logging
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..db import migrate, schema
from ..db.schema import now
from ..errors import Forbidden

if TYPE_CHECKING:
    from ..hub import Hub

logger = logging.getLogger(__name__)

__all__ = ["consume_setup_key", "prepare", "setup_key"]

_DERIVED_SINCE = "0007"
"""The first schema whose index holds all that `index/derive.py` reads today: whole cards, shapes of prompts."""
_HOURS = 24
# The key's digest is kept as a lease: who knows the key holds it.
_LEASE = "setup"


async def prepare(hub: Hub) -> None:
    """Brings the database to what this version needs, whatever it was before.

    Once after an upgrade this reads the cards and configs of all repositories, which takes some minutes for 100,000.
    """
    from ..facts import taxonomy
    from ..index import own_names, search
    from .reindex import reindex

    before = await migrate.current(hub.db)
    await migrate.upgrade(hub.db)
    async with hub.db.write() as conn:
        await search.prepare(conn)
        await own_names.fill(conn)
        if not (await conn.execute(sa.select(schema.task.c.id).limit(1))).first():
            await taxonomy.seed(conn)
    if before is not None and before < _DERIVED_SINCE:
        logger.warning("The index is derived anew: this version reads more in files than that of schema %s.", before)
        logger.warning("The index of %d repositories is derived anew.", await reindex(hub))


async def setup_key(hub: Hub) -> str | None:
    """A new key with which whoever holds it makes the first administrator; None where there is one.

    It is good for a day and for one use; an older one ends. The database keeps its SHA-256 only.
    """
    async with hub.db.write() as conn:
        if await _has_admin(conn):
            return None
        key = secrets.token_urlsafe(24)
        await conn.execute(sa.delete(schema.lease).where(schema.lease.c.name == _LEASE))
        values = {"name": _LEASE, "holder": _digest(key), "expires": now() + timedelta(hours=_HOURS)}
        await conn.execute(sa.insert(schema.lease).values(**values))
        return key


async def consume_setup_key(conn: AsyncConnection, key: str) -> None:
    """Uses up a key: make the administrator in the same transaction.

    Raises:
        Forbidden: it is not the newest key, was used, or is older than a day, or there is an administrator.
    """
    mine = (schema.lease.c.name == _LEASE, schema.lease.c.holder == _digest(key), schema.lease.c.expires > now())
    if not (await conn.execute(sa.delete(schema.lease).where(*mine))).rowcount or await _has_admin(conn):
        raise Forbidden(
            "This set-up link was used, has expired or was replaced by a newer one. Start the hub again for a new "
            "one, or run: adapterhub user add NAME --admin"
        )


async def _has_admin(conn: AsyncConnection) -> bool:
    query = sa.select(schema.account.c.id).where(schema.account.c.is_admin, sa.not_(schema.account.c.disabled))
    return (await conn.execute(query.limit(1))).first() is not None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
