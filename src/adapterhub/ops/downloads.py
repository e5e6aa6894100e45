"""Counting downloads: in memory while requests run, written down every few seconds, summed over 30 days by a job."""

from __future__ import annotations

import asyncio
from collections import Counter as _Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from .. import interest
from ..db import schema
from ..db.schema import now

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["Counter", "roll_up"]

FLUSH_SECONDS = 5.0
DAYS = 30


class Counter:
    """Downloads that are not written down yet. A crash loses the last few seconds of them."""

    def __init__(self) -> None:
        self._pending: _Counter[str] = _Counter()

    def add(self, uid: str) -> None:
        """Counts one download of a repository."""
        self._pending[uid] += 1

    async def flush(self, hub: Hub) -> None:
        """Writes down what was counted."""
        pending, self._pending = self._pending, _Counter()
        if not pending:
            return
        day = now().date()
        async with hub.db.write() as conn:
            query = sa.select(schema.repo.c.id, schema.repo.c.uid).where(schema.repo.c.uid.in_(pending))
            kept = (await conn.execute(query.order_by(schema.repo.c.id))).all()
            table = schema.download_day
            make = sqlite.insert(table) if hub.db.is_sqlite else postgresql.insert(table)
            add = make.on_conflict_do_update(
                index_elements=["repo_id", "day"], set_={"count": table.c.count + make.excluded.count}
            )
            for repo_id, uid in kept:
                count = pending[uid]
                await conn.execute(add, {"repo_id": repo_id, "day": day, "count": count})
                total = schema.repo.c.downloads_all + count
                await conn.execute(
                    sa.update(schema.repo).where(schema.repo.c.id == repo_id).values(downloads_all=total)
                )

    @asynccontextmanager
    async def flushing(self, hub: Hub) -> AsyncIterator[Counter]:
        """Flushes every few seconds while the block runs, and once more at its end."""

        async def loop() -> None:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                with suppress(sa.exc.DBAPIError):  # tried again, with what comes meanwhile
                    await self.flush(hub)

        task = asyncio.create_task(loop())
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.flush(hub)


async def roll_up(hub: Hub) -> None:
    """Sets every repository's downloads to those of the last 30 days, and what trends; forgets days no chart shows."""
    table = schema.download_day
    today = now().date()
    recent = (
        sa.select(sa.func.coalesce(sa.func.sum(table.c.count), 0))
        .where(table.c.repo_id == schema.repo.c.id, table.c.day > today - timedelta(days=DAYS))
        .scalar_subquery()
    )
    known = sa.select(schema.repo.c.downloads).where(schema.repo.c.id == schema.adapter.c.repo_id).scalar_subquery()
    async with hub.db.write() as conn:
        await conn.execute(sa.delete(table).where(table.c.day < today - timedelta(days=366)))
        await conn.execute(sa.update(schema.repo).where(schema.repo.c.downloads != recent).values(downloads=recent))
        await conn.execute(sa.update(schema.adapter).where(schema.adapter.c.downloads != known).values(downloads=known))
        await interest.trend(conn)
