"""Counts that take long: kept for a while, and counted anew beside the requests that find them old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from .engine import Database

__all__ = ["Counts"]

_T = TypeVar("_T")

_QUICK = 0.005  # seconds; what takes less is counted each time
_FACTOR = 100.0  # a count is new for this many times as long as it took: counting takes a hundredth of a core at most
_LATE = 30.0  # seconds that an old count is still given out, while it is counted anew
_MOST = 500


@dataclass(frozen=True)
class _Kept:
    value: Any
    old: float  # from when on it is counted anew
    gone: float  # from when on it is not given out any more


class Counts:
    """Counts of a database, as they are or were a moment ago.

    Only the first who asks waits for a count, and whoever asks when nobody did for a while. On a small hub every count
    is quick, and so always right.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._kept: dict[Hashable, _Kept] = {}
        self._running: dict[Hashable, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()

    async def get(self, conn: AsyncConnection, key: Hashable, count: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        """What `count` returns, or returned some seconds ago.

        Args:
            conn: what to count with if nothing is kept.
            key: what is counted, and for whom.
            count: counts with the connection that it is given; it may be called again after the request.
        """
        kept, now = self._kept.get(key), time.monotonic()
        if kept is None or now >= kept.gone:
            return await self._count(conn, key, count)
        if now >= kept.old and key not in self._running:
            task = self._running[key] = asyncio.create_task(self._count_beside(key, count))
            task.add_done_callback(lambda _: self._running.pop(key))
        value: _T = kept.value
        return value

    async def close(self) -> None:
        """Ends what is being counted."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _count(
        self, conn: AsyncConnection, key: Hashable, count: Callable[[AsyncConnection], Awaitable[_T]]
    ) -> _T:
        began = time.monotonic()
        value = await count(conn)
        cost = time.monotonic() - began
        self._kept.pop(key, None)  # so that the one counted longest ago comes first
        if cost >= _QUICK:
            old = began + _FACTOR * cost
            self._kept[key] = _Kept(value, old, old + _LATE)
            if len(self._kept) > _MOST:
                del self._kept[next(iter(self._kept))]
        return value

    async def _count_beside(self, key: Hashable, count: Callable[[AsyncConnection], Awaitable[Any]]) -> None:
        """Counts when no other count is made so: requests need the connections and the processor more."""
        with suppress(DBAPIError):  # who asks when the old count is gone is told
            async with self._turn, self._db.read() as conn:
                await self._count(conn, key, count)
