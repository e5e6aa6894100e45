"""Connections: many readers, and writers that each run in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from . import lookup
from .lookup import Lookup
from .sqlite import connect

__all__ = ["Database", "insert", "insert_missing"]

# Write-ahead log: readers never wait for a writer. NORMAL: a power cut may lose the last commits, never consistency.
_SQLITE_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA busy_timeout=15000",
    "PRAGMA foreign_keys=ON",
    "PRAGMA cache_size=-32000",
    "PRAGMA mmap_size=268435456",
)


class Database:
    """A SQLite or PostgreSQL database.

    Args:
        url: a SQLAlchemy URL with an async driver: `sqlite+aiosqlite:///path` or `postgresql+asyncpg://...`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        options: dict[str, Any] = {"pool_pre_ping": True}
        if self.is_sqlite:
            options = {"connect_args": {"async_creator_fn": connect}}
        self.engine: AsyncEngine = create_async_engine(url, pool_size=8, max_overflow=8, **options)
        if self.is_sqlite:
            sa.event.listen(self.engine.sync_engine, "connect", _prepare_sqlite)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read with. Each statement sees what is committed when it runs."""
        async with self.engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self, *, foreign_keys: bool = True) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed when the block ends, undone when it raises.

        On SQLite it takes the writers' lock at once, so that what it reads cannot change before it writes. On
        PostgreSQL rows that must not change are read with `.with_for_update()`.

        Args:
            foreign_keys: False leaves them alone on SQLite, where a table that is made anew is dropped meanwhile; they
                are checked at the end.
        """
        async with self.engine.connect() as connection:
            if not self.is_sqlite:
                async with connection.begin():
                    yield connection
            elif foreign_keys:
                async with _transaction(connection):
                    yield connection
            else:
                await connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
                try:
                    async with _transaction(connection):
                        yield connection
                        await _check_foreign_keys(connection)
                finally:
                    await connection.exec_driver_sql("PRAGMA foreign_keys=ON")

    async def look_up(self, query: Lookup, **values: str | int | None) -> Sequence[Any]:
        """The rows that a lookup finds; it sees what is committed when it runs."""
        if self.is_sqlite:
            try:
                return query.run(self._near, values)
            except sqlite3.OperationalError:  # such as a lock, which another thread can wait for
                pass
        async with self.read() as connection:
            rows: Sequence[Any] = (await connection.execute(query.statement, values)).all()
            return rows

    @cached_property
    def _near(self) -> sqlite3.Connection:
        """The connection on which lookups run, in the thread of the event loop."""
        return lookup.connect(self.engine.url.database or "")

    async def close(self) -> None:
        """Closes every connection."""
        if "_near" in vars(self):
            self._near.close()
        await self.engine.dispose()


@asynccontextmanager
async def _transaction(connection: AsyncConnection) -> AsyncIterator[None]:
    """A transaction of SQLite's that may write."""
    await connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        await connection.exec_driver_sql("ROLLBACK")
        raise
    await connection.exec_driver_sql("COMMIT")


async def _check_foreign_keys(connection: AsyncConnection) -> None:
    broken = (await connection.exec_driver_sql("PRAGMA foreign_key_check")).all()
    if broken:
        tables = sorted({row[0] for row in broken})
        raise RuntimeError(
            f"{len(broken)} rows of {', '.join(tables)} name rows that are not there. Nothing was changed."
        )


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # we begin and end transactions ourselves
    cursor = connection.cursor()
    for pragma in _SQLITE_PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


async def insert(conn: AsyncConnection, table: sa.Table, **values: Any) -> int:
    """Inserts a row and returns the number that is its key."""
    result = await conn.execute(sa.insert(table).values(**values))
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])


async def insert_missing(
    conn: AsyncConnection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    renew: Mapping[str, Any] | None = None,
) -> None:
    """Inserts the rows whose key the table does not have yet, whoever else does the same.

    Args:
        renew: what becomes of columns of the rows that are there; they cannot be deleted before this transaction ends.
    """
    if rows:
        insert = (sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert)(table)
        keys = list(table.primary_key)
        kept = (
            insert.on_conflict_do_update(index_elements=keys, set_=dict(renew))
            if renew
            else insert.on_conflict_do_nothing()
        )
        await conn.execute(kept, list(rows))
