"""The one door for bytes: hashed while they are written, flushed to the disk, checked, and only then kept.

A crash at any point leaves either a file in the scratch folder, which nothing names, or a row in state `pending`, which
nothing serves; the garbage collector removes both.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from . import quotas
from .content.inspect import inspect
from .db import schema
from .db.engine import insert_missing
from .db.schema import now
from .errors import DiskFull, HubError, StorageUnavailable, TooLarge, Unprocessable
from .storage.blobs import CHUNK
from .storage.git import MAX_POINTER, BlobHash, is_lfs_pointer

if TYPE_CHECKING:
    from .hub import Hub

__all__ = [
    "Blob",
    "Staged",
    "ingest",
    "keep",
    "once",
    "renew",
    "stage",
    "stage_bytes",
    "take_over",
    "use",
]


@dataclass(frozen=True)
class Blob:
    """Stored bytes.

    Attributes:
        sha256: their SHA-256, by which they are stored.
        git_oid: the object id git gives them.
        size: their number.
        header: of a safetensors file, `{tensor name: [dtype, shape]}`.
    """

    sha256: str
    git_oid: str
    size: int
    header: dict[str, Any] | None = None


@dataclass(frozen=True)
class Staged:
    """Bytes that were checked and are on the disk, but not yet part of the hub."""

    blob: Blob
    path: Path
    quarantine: str | None = None


async def ingest(
    hub: Hub,
    chunks: AsyncIterator[bytes],
    *,
    repo_id: int,
    payer_id: int | None = None,
    expect_sha256: str | None = None,
    expect_size: int | None = None,
    name: str = "",
) -> Blob:
    """Takes bytes into the hub for a repository.

    Args:
        payer_id: the account whose quota they count for; None: the repository's owner.
        expect_sha256: what was announced; other bytes are refused.
        expect_size: what was announced; more or fewer bytes are refused.
        name: path in the repository, where it is known: its ending tells what the bytes must be.

    Raises:
        Unprocessable: hash or size are not as announced, or the content is not allowed.
        TooLarge: more bytes than announced or allowed.
        Forbidden: the payer's quota is used up.
        DiskFull, StorageUnavailable: they cannot be stored.
    """
    staged = await stage(hub, chunks, expect_sha256=expect_sha256, expect_size=expect_size, name=name)
    await keep(hub, [staged], repo_id=repo_id, payer_id=payer_id)
    return staged.blob


async def stage(
    hub: Hub,
    chunks: AsyncIterator[bytes],
    *,
    expect_sha256: str | None = None,
    expect_size: int | None = None,
    name: str = "",
) -> Staged:
    """Writes bytes to the scratch folder and checks them. Arguments and errors are those of `ingest`."""
    path = hub.scratch / f"in-{secrets.token_hex(16)}"
    try:
        sha256, oid, size = await _write(hub, path, chunks, expect_size)
        if expect_sha256 is not None and sha256 != expect_sha256:
            raise Unprocessable(
                f"The bytes have SHA-256 {sha256}, but {expect_sha256} was announced. Upload them again."
            )
        if expect_size is not None and size != expect_size:
            raise Unprocessable(f"{size} bytes came, but {expect_size} were announced. Upload them again.")
        _refuse_pointer(path, size, name)
        header, danger = await asyncio.to_thread(inspect, path, name)
        if danger and hub.settings.pickle_policy == "refuse":
            raise Unprocessable(danger)
        quarantine = danger if hub.settings.pickle_policy == "quarantine" else None
        git_oid = await asyncio.to_thread(_git_oid, path, size) if oid is None else oid
        return Staged(Blob(sha256, git_oid, size, header), path, quarantine)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(error) from error
        raise


def storage_error(error: OSError) -> HubError:
    """What to answer when bytes cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("The hub's disk is full. Nothing was stored; tell its administrator.")
    return StorageUnavailable(f"The bytes cannot be written: {error.strerror}.")


async def once(data: bytes) -> AsyncIterator[bytes]:
    """Bytes that are in memory, as the chunks that `ingest` and `stage` take."""
    yield data


async def stage_bytes(hub: Hub, data: bytes, *, name: str) -> Staged:
    """Stages bytes that are in memory. Errors are those of `ingest`."""
    return await stage(hub, once(data), expect_size=len(data), name=name)


async def _write(
    hub: Hub, path: Path, chunks: AsyncIterator[bytes], expect_size: int | None
) -> tuple[str, str | None, int]:
    limit = hub.settings.max_file if expect_size is None else min(expect_size, hub.settings.max_file)
    digest, size = BlobHash(expect_size), 0
    with open(path, "xb") as file:

        def take(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        async for data in _gathered(chunks):
            size += len(data)
            if size > limit:
                raise TooLarge(f"More than {limit} bytes came, which is what was announced or is allowed.")
            # Small pieces cost less here than the way to a thread and back.
            await asyncio.to_thread(take, data) if len(data) >= CHUNK // 8 else take(data)
        await asyncio.to_thread(_flush, file)
    return digest.sha256.hexdigest(), digest.oid if size == expect_size else None, size


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of about `CHUNK`: a server hands them out in small ones."""
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size >= CHUNK:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def _refuse_pointer(path: Path, size: int, name: str) -> None:
    """In a tree, a file whose text is a pointer would have the object id of the large file that it points to."""
    if size <= MAX_POINTER and is_lfs_pointer(path.read_bytes()):
        raise Unprocessable(
            f"{name or 'This file'} is a pointer of Git LFS, not the file itself. Fetch the file first: git lfs pull."
        )


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _git_oid(path: Path, size: int) -> str:
    digest = BlobHash(size)
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    assert digest.oid is not None
    return digest.oid


async def keep(hub: Hub, staged: Sequence[Staged], *, repo_id: int | None, payer_id: int | None = None) -> list[Blob]:
    """Makes staged bytes part of the hub, and notes that a repository holds them.

    The rows come first, as `pending` and with a fresh `last_ref`: from then on the garbage collector, which looks at
    `last_ref` in the transaction in which it deletes, leaves these blobs alone.

    Args:
        repo_id: the repository; None: the caller notes it later, in the transaction that makes the repository.
        payer_id: the account whose quota they count for; None: the repository's owner.

    Raises:
        Forbidden: the payer's quota is used up.
        DiskFull, StorageUnavailable: they cannot be stored.
    """
    try:
        async with hub.db.write() as conn:
            present = await _note(hub, conn, repo_id, payer_id, staged)
        for item in staged:
            if item.blob.sha256 not in present:
                await hub.blobs.put_file(item.blob.sha256, item.path)
        fresh = {item.blob.sha256: item for item in staged if item.blob.sha256 not in present}
        if fresh:
            async with hub.db.write() as conn:
                for sha256, item in fresh.items():
                    await conn.execute(
                        sa.update(schema.blob)
                        .where(schema.blob.c.sha256 == sha256)
                        .values(state="quarantined" if item.quarantine else "ok")
                    )
    finally:
        for item in staged:
            item.path.unlink(missing_ok=True)
    return [item.blob for item in staged]


async def _note(
    hub: Hub, conn: AsyncConnection, repo_id: int | None, payer_id: int | None, staged: Iterable[Staged]
) -> set[str]:
    """Adds or refreshes the rows; returns the blobs that are in the store already."""
    unique = {item.blob.sha256: item.blob for item in staged}
    rows = [
        {"sha256": sha256, "git_oid": blob.git_oid, "size": blob.size, "header": blob.header, "state": "pending"}
        for sha256, blob in unique.items()
    ]
    await insert_missing(conn, schema.blob, rows, renew={"last_ref": now()})
    if repo_id is not None:
        await use(hub, conn, repo_id, unique, payer_id=payer_id)
    query = sa.select(schema.blob.c.sha256).where(
        schema.blob.c.sha256.in_(unique), schema.blob.c.state.in_(("ok", "quarantined"))
    )
    return set((await conn.execute(query)).scalars())


async def use(
    hub: Hub, conn: AsyncConnection, repo_id: int, blobs: Iterable[str], *, payer_id: int | None = None
) -> None:
    """Notes that a repository holds blobs. Whoever pays for those that it held before still does.

    Args:
        payer_id: the account whose quota the others count for; None: the repository's owner.

    Raises:
        Forbidden: the payer's quota is used up.
    """
    table, wanted = schema.blob_use, set(blobs)
    noted = sa.select(table.c.sha256).where(table.c.repo_id == repo_id, table.c.sha256.in_(wanted))
    fresh = sorted(wanted.difference((await conn.execute(noted)).scalars()))
    if not fresh:
        return
    query = sa.select(schema.blob.c.sha256, schema.blob.c.size).where(schema.blob.c.sha256.in_(fresh))
    sizes = dict((await conn.execute(query)).all())
    await quotas.require_room(hub, conn, payer_id or await _owner(conn, repo_id), sizes)
    rows = [{"repo_id": repo_id, "sha256": sha256, "payer_id": payer_id} for sha256 in fresh]
    await insert_missing(conn, table, rows)


async def take_over(hub: Hub, conn: AsyncConnection, repo_id: int, blobs: Iterable[str]) -> None:
    """Lets a repository's owner pay for blobs that others have brought.

    Raises:
        Forbidden: the owner's quota is used up.
    """
    table, wanted = schema.blob_use, set(blobs)
    query = (
        sa.select(table.c.sha256, schema.blob.c.size)
        .join(schema.blob, schema.blob.c.sha256 == table.c.sha256)
        .where(table.c.repo_id == repo_id, table.c.payer_id.is_not(None))
    )
    sizes = {sha256: size for sha256, size in await conn.execute(query) if sha256 in wanted}
    if sizes:
        await quotas.require_room(hub, conn, await _owner(conn, repo_id), sizes)
        theirs = (table.c.repo_id == repo_id, table.c.sha256.in_(sizes))
        await conn.execute(sa.update(table).where(*theirs).values(payer_id=None))


async def _owner(conn: AsyncConnection, repo_id: int) -> int:
    query = sa.select(schema.repo.c.owner_id).where(schema.repo.c.id == repo_id)
    return int((await conn.execute(query)).scalar_one())


async def renew(
    hub: Hub, conn: AsyncConnection, repo_id: int, blobs: Iterable[str], *, payer_id: int | None = None
) -> None:
    """Notes that a repository is about to name blobs that are here. Arguments and errors are those of `use`."""
    wanted = set(blobs)
    await conn.execute(sa.update(schema.blob).where(schema.blob.c.sha256.in_(wanted)).values(last_ref=now()))
    await use(hub, conn, repo_id, wanted, payer_id=payer_id)
