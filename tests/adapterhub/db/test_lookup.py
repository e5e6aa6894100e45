"""Do lookups give what SQLAlchemy gives, see what others have just committed, and wait where they must?"""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapterhub.db import lookup, schema
from adapterhub.db.engine import Database
from adapterhub.db.lookup import Lookup
from adapterhub.hub import Hub

KINDS = sa.Table(
    "kinds",
    sa.MetaData(),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("count", sa.BigInteger),
    sa.Column("share", sa.Float),
    sa.Column("hidden", sa.Boolean),
    sa.Column("at", schema.Utc),
    sa.Column("card", schema.JSON),
)
BY_NAME = Lookup(sa.select(KINDS).where(KINDS.c.name == sa.bindparam("name")))
MOMENT = datetime(2026, 11, 20, 17, 53, 57, 250, timezone.utc)
ROWS = (
    {"name": "full", "count": 1 << 40, "share": 0.5, "hidden": True, "at": MOMENT, "card": {"tags": ["ä", None]}},
    {"name": "empty", "count": None, "share": None, "hidden": None, "at": None, "card": None},
)


@pytest.mark.parametrize("hub", [{}, {"db": "postgres"}], indirect=True)
def test_rows_are_those_of_sqlalchemy(hub: Hub, run: Any) -> None:
    async def check() -> None:
        async with hub.db.write() as conn:
            await conn.run_sync(KINDS.create)
            await conn.execute(sa.insert(KINDS), ROWS)
        for row in ROWS:
            (found,) = await hub.db.look_up(BY_NAME, name=row["name"])
            assert found == tuple(row.values()) and found.card == row["card"]
        assert await hub.db.look_up(BY_NAME, name="missing") == []

    run(check())


@pytest.mark.parametrize("hub", [{}, {"db": "postgres"}], indirect=True)
def test_what_is_committed_is_seen_and_nothing_else(hub: Hub, run: Any) -> None:
    by_name = Lookup(sa.select(schema.account.c.fullname).where(schema.account.c.name == sa.bindparam("name")))

    async def check() -> None:
        for fullname in ("One", "Two"):
            async with hub.db.write() as conn:
                before = await hub.db.look_up(by_name, name="alice")
                await conn.execute(sa.update(schema.account).values(fullname=fullname))
                assert await hub.db.look_up(by_name, name="alice") == before
            assert await hub.db.look_up(by_name, name="alice") == [(fullname,)]

    run(check())


def test_a_lock_is_waited_for_outside_of_the_event_loop(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("CREATE TABLE kinds (name, count, share, hidden, at, card)")
    holder.execute("INSERT INTO kinds (name) VALUES ('only')")
    holder.execute("BEGIN EXCLUSIVE")  # without a write-ahead log, this keeps readers out

    async def check() -> None:
        database = Database(f"sqlite+aiosqlite:///{path}")
        asked = asyncio.ensure_future(database.look_up(BY_NAME, name="only"))
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert not asked.done()
        holder.execute("COMMIT")
        assert [row.name for row in await asked] == ["only"]
        await database.close()

    asyncio.run(check())
    holder.close()


def test_its_connection_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "with space?" / "hub.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE kinds (name)")
    connection.close()
    reader = lookup.connect(str(path))
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("INSERT INTO kinds VALUES ('new')")
    reader.close()
