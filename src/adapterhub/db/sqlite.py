"""Connections to SQLite on which a query costs one way to their thread and back.

SQLite runs in a thread of its own for each connection. `aiosqlite` goes there for every step: to make a cursor, to
execute, to fetch, to close, and to end a transaction though none was begun. For the small queries that most are, these
ways take several times longer than the work.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

from aiosqlite import Connection, Cursor

__all__ = ["connect"]

_ROWS = 500  # that come with the statement; more are fetched in pieces, so that tables can be read as a stream


def connect(database: str, **options: Any) -> Connection:
    """A connection like that of `aiosqlite.connect`, to be awaited."""
    connection = _Connection(lambda: sqlite3.connect(database, **options), iter_chunk_size=64)
    connection._thread.daemon = True
    return connection


class _Connection(Connection):
    _given_up = False  # a call was cancelled, but the thread may still be at it

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function in the connection's thread."""
        try:
            return await self._execute(function, *args)  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            self._given_up = True
            raise

    def cursor(self) -> _Cursor:  # type: ignore[override]
        return _Cursor(self)

    async def rollback(self) -> None:
        if self._given_up or self.in_transaction:
            self._given_up = False
            await super().rollback()


class _Cursor(Cursor):
    """A cursor that is made in the thread when it is needed, and whose first rows come with the statement."""

    def __init__(self, connection: _Connection) -> None:
        self._run = connection.run
        self._make: Callable[[], sqlite3.Cursor] = lambda: connection._conn.cursor()
        self._rows: list[Any] = []
        self._complete = True

    async def __aenter__(self) -> _Cursor:
        return self

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> _Cursor:
        def work() -> list[Any]:
            self._cursor = self._make()
            self._cursor.execute(sql, parameters or ())  # type: ignore[arg-type]
            return self._cursor.fetchmany(_ROWS) if self._cursor.description else []

        self._rows = await self._run(work)
        self._complete = len(self._rows) < _ROWS
        return self

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> _Cursor:
        def work() -> None:
            self._cursor = self._make()
            self._cursor.executemany(sql, parameters)  # type: ignore[arg-type]

        await self._run(work)
        return self

    async def fetchone(self) -> Any:
        return next(iter(await self.fetchmany(1)), None)

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        size = size or 1
        if len(self._rows) < size and not self._complete:
            more = await self._run(self._cursor.fetchmany, max(size, _ROWS))
            self._rows += more
            self._complete = len(more) < max(size, _ROWS)
        found, self._rows = self._rows[:size], self._rows[size:]
        return found

    async def fetchall(self) -> list[Any]:
        found, self._rows = self._rows, []
        if not self._complete:
            found += await self._run(self._cursor.fetchall)
            self._complete = True
        return found

    async def close(self) -> None:
        """Ends a statement whose rows were not all fetched; others have ended by themselves."""
        if not self._complete:
            self._complete = True
            await self._run(self._cursor.close)
