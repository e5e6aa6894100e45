"""Copies of a hub: its database as it is at one moment, and its bytes, of which only new ones are copied.

backup/hub.db            SQLite's own copy, or
backup/tables/*.jsonl    the tables row by row: of PostgreSQL, or on request; either database takes them back
backup/blobs/ab/cd/…     the bytes
backup/secret            what signs the hub's addresses
backup/backup.json       when and by what it was made
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..db import migrate, schema
from ..db.schema import now
from ..storage.disk import DiskStore

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["Backup", "backup", "restore"]

_ROWS = 1000
# What a restored hub is better off without: it ends by itself, or belongs to the machine.
_LEFT_OUT = {schema.session, schema.lease, schema.rate, schema.upload, schema.xorb}


@dataclass(frozen=True)
class Backup:
    """What was copied."""

    revision: str
    blobs: int
    copied: int

    def __str__(self) -> str:
        return f"the database at revision {self.revision}, and {self.blobs} blobs, of which {self.copied} were new"


async def backup(hub: Hub, folder: Path, *, tables: bool = False) -> Backup:
    """Copies a hub, which may be in use meanwhile, into a folder that may hold an older copy.

    The database comes first: bytes that it names are not collected within the grace, so they are there to be copied.

    Args:
        tables: copies the tables row by row, so that the other kind of database can take them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / "backup.json").unlink(missing_ok=True)  # until the copy is complete, it is none
    (folder / "hub.db").unlink(missing_ok=True)
    shutil.rmtree(folder / "tables", ignore_errors=True)
    revision = await migrate.current(hub.db)
    if hub.db.is_sqlite and not tables:
        await asyncio.to_thread(_copy_sqlite, _file_of(hub), folder / "hub.db")
    else:
        await _dump(hub, folder / "tables")
    secret = hub.settings.data / "secret"
    if secret.exists():
        shutil.copy2(secret, folder / "secret")
    blobs, copied = await _copy_blobs(hub, folder / "blobs")
    facts = {"revision": revision, "created": now().isoformat(), "blobs": blobs}
    (folder / "backup.json").write_text(json.dumps(facts, indent=1) + "\n")
    return Backup(str(revision), blobs, copied)


async def restore(hub: Hub, folder: Path) -> Backup:
    """Makes an empty hub equal to a copy.

    Raises:
        ValueError: the folder holds no complete copy, the copy is newer than this program, or the hub is not empty.
    """
    try:
        facts = json.loads((folder / "backup.json").read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no complete copy of a hub: there is no backup.json.") from error
    if facts["revision"] > migrate.HEAD:
        raise ValueError(
            f"The copy has revision {facts['revision']}, but this adapterhub knows {migrate.HEAD} at most. Install a "
            "newer one."
        )
    if await migrate.current(hub.db) is not None:
        raise ValueError("The hub is not empty. Restore into a new --data folder, or a new --db.")
    if (folder / "hub.db").exists() and not hub.db.is_sqlite:
        raise ValueError("This is a copy of SQLite. To restore it elsewhere, make it with: adapterhub backup --tables")
    if (folder / "secret").exists():
        shutil.copy2(folder / "secret", hub.settings.data / "secret")
    stored = {name async for name in hub.blobs.names()}
    copied = 0
    for sha256 in [name async for name in DiskStore(folder / "blobs").names()]:
        if sha256 not in stored:
            arriving = hub.scratch / f"in-{sha256}"
            await asyncio.to_thread(shutil.copyfile, _path(folder / "blobs", sha256), arriving)
            await hub.blobs.put_file(sha256, arriving)
            copied += 1
    if (folder / "hub.db").exists():
        await hub.db.close()
        await asyncio.to_thread(_copy_sqlite, folder / "hub.db", _file_of(hub))
    else:
        await migrate.upgrade(hub.db, facts["revision"])
        await _load(hub, folder / "tables")
    await migrate.upgrade(hub.db)
    return Backup(facts["revision"], facts["blobs"], copied)


def _path(root: Path, sha256: str) -> Path:
    return root / sha256[:2] / sha256[2:4] / sha256


# ---- SQLite ---------------------------------------------------------------------------------------------------------


def _file_of(hub: Hub) -> Path:
    return Path(hub.db.url.split("///", 1)[1])


def _copy_sqlite(source: Path, target: Path) -> None:
    """SQLite's online copy: one moment of the database, while others write to it."""
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(part)) as new:
        old.backup(new)
        if (found := new.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            raise ValueError(f"The copy of {source} is damaged: {found}.")
    os.replace(part, target)


# ---- tables ---------------------------------------------------------------------------------------------------------


async def _dump(hub: Hub, folder: Path) -> None:
    folder.mkdir()
    async with hub.db.engine.connect() as conn:
        # All tables as they are at one moment.
        if hub.db.is_sqlite:
            await conn.exec_driver_sql("BEGIN")
        else:
            await conn.execution_options(isolation_level="REPEATABLE READ")
        for table in schema.metadata.sorted_tables:
            if table in _LEFT_OUT:
                continue
            with open(folder / f"{table.name}.jsonl", "w", encoding="utf-8") as file:
                async for row in (await conn.stream(sa.select(table))).mappings():
                    file.write(json.dumps(dict(row), default=_plain, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, date):  # and datetime, which is one
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be written")


async def _load(hub: Hub, folder: Path) -> None:
    """Fills empty tables: all or none."""
    from ..index import search

    async with hub.db.write() as conn:
        for table in schema.metadata.sorted_tables:
            path = folder / f"{table.name}.jsonl"
            if path.exists():
                with open(path, encoding="utf-8") as file:
                    for rows in _batches(file, table):
                        await conn.execute(sa.insert(table), rows)
                await _continue_numbers(conn, table)
        await search.prepare(conn)
        for repo_id, text in (await conn.execute(sa.select(schema.adapter.c.repo_id, schema.adapter.c.search))).all():
            await search.put(conn, repo_id, text)


def _batches(file: IO[str], table: sa.Table) -> Iterator[list[dict[str, Any]]]:
    moments = [column.name for column in table.c if isinstance(column.type, schema.Utc)]
    days = [column.name for column in table.c if isinstance(column.type, sa.Date)]
    rows: list[dict[str, Any]] = []
    for line in file:
        row = json.loads(line)
        row |= {name: datetime.fromisoformat(row[name]) for name in moments if row[name]}
        row |= {name: date.fromisoformat(row[name]) for name in days if row[name]}
        rows.append(row)
        if len(rows) == _ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


async def _continue_numbers(conn: AsyncConnection, table: sa.Table) -> None:
    """PostgreSQL counts rows in a sequence, which does not see rows that bring their number."""
    column = table.autoincrement_column
    if column is not None and conn.dialect.name == "postgresql":
        sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
        newest = sa.select(sa.func.max(column)).scalar_subquery()
        await conn.execute(sa.select(sa.func.setval(sequence, sa.func.coalesce(newest, 1))))


# ---- bytes ----------------------------------------------------------------------------------------------------------


async def _copy_blobs(hub: Hub, folder: Path) -> tuple[int, int]:
    """Copies the bytes that the copy has not yet; how many there are, and how many were new."""
    target, copied, number = DiskStore(folder), 0, 0
    async with hub.db.read() as conn:
        query = sa.select(schema.blob.c.sha256).where(schema.blob.c.state.in_(("ok", "quarantined")))
        wanted = (await conn.execute(query)).scalars().all()
    for sha256 in wanted:
        number += 1
        if await target.size(sha256) is None:
            part = folder / f".{sha256}"
            await _copy_one(hub, sha256, part)
            await target.put_file(sha256, part)
            copied += 1
    return number, copied


async def _copy_one(hub: Hub, sha256: str, part: Path) -> None:
    part.unlink(missing_ok=True)
    local = hub.blobs.local_path(sha256)
    if local is not None:
        try:
            os.link(local, part)  # the same bytes under a second name: blobs never change
            return
        except OSError:
            await asyncio.to_thread(shutil.copyfile, local, part)
            return
    with open(part, "wb") as file:
        async for chunk in hub.blobs.open(sha256):
            await asyncio.to_thread(file.write, chunk)
