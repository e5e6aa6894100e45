"""Collecting garbage: bytes that no commit and no open upload names, after a grace of a week.

A blob goes in two transactions. The first, in which nothing names it, marks its row as `missing`: from then on nobody
builds on its bytes, and an upload of the same bytes brings them anew. The second deletes bytes and row together, unless
such an upload has come meanwhile. A crash between or within them leaves a row that the next collection takes away.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..db import schema
from ..db.schema import now
from ..xet import ingest as xorbs

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["GRACE", "Collected", "collect", "expire", "named"]

GRACE = timedelta(days=7)
_SCRATCH_AGE = timedelta(days=1)
# So many blobs are handled in one transaction: a writer waits no longer than this takes.
_BATCH = 50

blob, use, repo, tree, commit, upload = (
    schema.blob,
    schema.blob_use,
    schema.repo,
    schema.tree,
    schema.commit,
    schema.upload,
)


@dataclass
class Collected:
    """What a collection removed."""

    uses: int = 0
    trees: int = 0
    blobs: int = 0
    bytes: int = 0
    scratch: int = 0

    def __str__(self) -> str:
        return (
            f"{self.blobs} blobs with {self.bytes} bytes, {self.uses} uses by repositories, {self.trees} trees and "
            f"{self.scratch} unfinished files removed"
        )


async def collect(hub: Hub, *, grace: timedelta = GRACE) -> Collected:
    """Removes what nothing names and nothing has named for `grace`."""
    done, before = Collected(), now() - grace
    await expire(hub)
    done.trees = await _drop_trees(hub)
    done.uses = await _drop_uses(hub, before)
    await _condemn(hub, before)
    await _delete(hub, before, done)
    done.scratch = _sweep_scratch(hub)
    return done


async def expire(hub: Hub) -> None:
    """Removes what has had its time: sessions, tombstones, uploads in parts with their bytes, xorbs."""
    moment = now()
    async with hub.db.read() as conn:
        ended = (await conn.execute(sa.select(upload.c.id).where(upload.c.expires < moment))).scalars().all()
    for name in ended:
        shutil.rmtree(hub.scratch / f"parts-{name}", ignore_errors=True)
    async with hub.db.write() as conn:
        for table, column in (
            (schema.session, schema.session.c.expires),
            (schema.tombstone, schema.tombstone.c.until),
            (upload, upload.c.expires),
        ):
            await conn.execute(sa.delete(table).where(column < moment))
    await xorbs.sweep(hub, moment)


# ---- what is named --------------------------------------------------------------------------------------------------


def named(dialect: str) -> sa.Select[tuple[int, str]]:
    """Which repository names which blob by one of its commits: rows of `repo_id` and `sha256`."""
    if dialect == "sqlite":
        item = sa.func.json_each(tree.c.manifest).table_valued("value")
        sha256: Any = sa.func.json_extract(item.c.value, "$[0]")
    else:
        item = sa.func.jsonb_each(tree.c.manifest).table_valued("key", sa.column("value", schema.JSON))
        sha256 = item.c.value.op("->>")(sa.literal_column("0"))
    return (
        sa.select(commit.c.repo_id, sha256.label("sha256"))
        .select_from(commit)
        .join(tree, tree.c.oid == commit.c.tree)
        .join(item, sa.true())
        .distinct()
    )


async def _drop_trees(hub: Hub) -> int:
    """Removes trees without commits: those of deleted repositories."""
    async with hub.db.write() as conn:
        unused = sa.not_(sa.exists().where(commit.c.tree == tree.c.oid))
        return int((await conn.execute(sa.delete(tree).where(unused))).rowcount)


async def _drop_uses(hub: Hub, before: datetime) -> int:
    """Removes the note that a repository holds a blob, where it was uploaded and never committed."""
    names = named("sqlite" if hub.db.is_sqlite else "postgresql").subquery()
    same = sa.and_(names.c.repo_id == use.c.repo_id, names.c.sha256 == use.c.sha256)
    stale = (
        sa.select(use.c.repo_id, use.c.sha256)
        .join(blob, blob.c.sha256 == use.c.sha256)
        .outerjoin(names, same)
        .where(names.c.sha256.is_(None), blob.c.last_ref < before)
    )
    by_repo: dict[int, list[str]] = defaultdict(list)
    async with hub.db.read() as conn:
        for repo_id, sha256 in await conn.execute(stale):
            by_repo[repo_id].append(sha256)
    dropped = 0
    for repo_id, found in by_repo.items():
        for batch in _batches(found):
            async with hub.db.write() as conn:
                # A commit holds its branch's row: none is made while these are looked at again.
                await conn.execute(sa.select(schema.ref.c.oid).where(schema.ref.c.repo_id == repo_id).with_for_update())
                again = stale.where(use.c.repo_id == repo_id, use.c.sha256.in_(batch))
                still = [sha256 for _, sha256 in (await conn.execute(again))]
                mine = (use.c.repo_id == repo_id, use.c.sha256.in_(still))
                dropped += (await conn.execute(sa.delete(use).where(*mine))).rowcount
                await set_bytes(conn, repo_id)
    return dropped


async def set_bytes(conn: AsyncConnection, repo_id: int) -> None:
    """Sums up anew what a repository holds."""
    held = sa.select(use.c.sha256).where(use.c.repo_id == repo_id)
    size = sa.select(sa.func.coalesce(sa.func.sum(blob.c.size), 0)).where(blob.c.sha256.in_(held))
    await conn.execute(sa.update(repo).where(repo.c.id == repo_id).values(bytes=size.scalar_subquery()))


# ---- blobs ----------------------------------------------------------------------------------------------------------


def _unnamed(before: datetime) -> sa.ColumnElement[bool]:
    """Whether no repository, no open upload and, for the grace, nobody at all has named a blob."""
    return sa.and_(
        blob.c.last_ref < before,
        sa.not_(sa.exists().where(use.c.sha256 == blob.c.sha256)),
        sa.not_(sa.exists().where(upload.c.oid == blob.c.sha256)),
    )


async def _condemn(hub: Hub, before: datetime) -> None:
    """Marks the rows of blobs that are to go."""
    kept = blob.c.state.in_(("ok", "quarantined"))
    async with hub.db.read() as conn:
        found = (await conn.execute(sa.select(blob.c.sha256).where(kept, _unnamed(before)))).scalars().all()
    for batch in _batches(found):
        async with hub.db.write() as conn:
            for sha256 in await _locked(conn, batch, before):
                await conn.execute(sa.update(blob).where(blob.c.sha256 == sha256, kept).values(state="missing"))


async def _delete(hub: Hub, before: datetime, done: Collected) -> None:
    """Deletes bytes and rows of blobs that are marked, or whose upload was broken off."""
    gone = blob.c.state.in_(("missing", "pending"))
    async with hub.db.read() as conn:
        found = (await conn.execute(sa.select(blob.c.sha256).where(gone, _unnamed(before)))).scalars().all()
    for batch in _batches(found):
        async with hub.db.write() as conn:
            certain = await _locked(conn, batch, before)
            rows = sa.select(blob.c.sha256, blob.c.size).where(blob.c.sha256.in_(certain), gone)
            for sha256, size in (await conn.execute(rows)).all():
                await hub.blobs.delete(sha256)
                await conn.execute(sa.delete(blob).where(blob.c.sha256 == sha256))
                done.blobs += 1
                done.bytes += size


async def _locked(conn: AsyncConnection, candidates: Sequence[str], before: datetime) -> list[str]:
    """Those of some blobs that nothing names, and that nothing can name until the transaction ends."""
    # First the lock, then the question, which on PostgreSQL sees what was committed while the lock was waited for.
    lock = sa.select(blob.c.sha256).where(blob.c.sha256.in_(candidates)).with_for_update(skip_locked=True)
    locked = (await conn.execute(lock)).scalars().all()
    query = sa.select(blob.c.sha256).where(blob.c.sha256.in_(locked), _unnamed(before))
    return list((await conn.execute(query)).scalars())


def _batches(found: Iterable[str]) -> Iterable[list[str]]:
    items = list(found)
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


# ---- scratch --------------------------------------------------------------------------------------------------------


def _sweep_scratch(hub: Hub) -> int:
    """Removes what unfinished uploads have left in the scratch folder: what nobody has written to for a day."""
    before, removed = time.time() - _SCRATCH_AGE.total_seconds(), 0
    for path in hub.scratch.iterdir():
        if path.stat().st_mtime < before:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            removed += 1
    return removed
