"""From xorbs and shards to ordinary files.

A xorb is decoded and checked once, when it comes, and kept as its bytes with the hashes of its chunks behind them. So
a file that a shard describes is checked against those hashes, and copied, without decoding anything again.

The client remembers which chunks it has sent to an address and does not send them twice. So the address has a scope,
which is a user and a week, and xorbs are kept for longer than a scope is in use.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import quotas
from ..db import schema
from ..db.engine import insert_missing
from ..db.schema import now
from ..errors import BadRequest, DiskFull, Forbidden, StorageUnavailable, TooLarge
from ..ingest import Blob
from ..ingest import ingest as ingest_bytes
from ..repos import repos
from . import codec
from .codec import MalformedXet, Node, ShardFile

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["accepts_scope", "commit_shard", "scope_of", "store_xorb", "sweep"]

KEPT = timedelta(days=15)  # a scope is in use for two weeks
_BATCH = 2 << 20  # bytes decoded by one call to a thread
_ENTRY = struct.Struct("<32sI")  # behind a stored xorb's bytes: each chunk's hash and length, then their number


# ---- scopes ---------------------------------------------------------------------------------------------------------


def scope_of(user_id: int, moment: datetime) -> str:
    """The scope of a user in the week of a moment: `7-2026W47`."""
    year, week, _ = moment.isocalendar()
    return f"{user_id}-{year}W{week:02}"


def accepts_scope(scope: str, user_id: int, moment: datetime) -> bool:
    """Whether a scope is the user's of this week or the last one."""
    return scope in (scope_of(user_id, moment), scope_of(user_id, moment - timedelta(days=7)))


def _folder(hub: Hub, scope: str) -> Path:
    return hub.settings.data / "xorbs" / scope


def _path(hub: Hub, scope: str, name: str) -> Path:
    return _folder(hub, scope) / name


# ---- xorbs ----------------------------------------------------------------------------------------------------------


async def store_xorb(hub: Hub, scope: str, name: str, body: AsyncIterator[bytes], *, announced: int = 0) -> bool:
    """Takes in a xorb.

    Args:
        announced: how many bytes are to come, where that is known.

    Returns:
        Whether it is new.

    Raises:
        BadRequest: it is malformed, or its hash is not `name`.
        TooLarge: it has more bytes or chunks than the format allows.
        Forbidden: the user's unfinished uploads fill a whole quota.
        DiskFull, StorageUnavailable: it cannot be stored.
    """
    with _as_bad_request():
        codec.hash_from_hex(name)
    async with hub.db.read() as conn:
        await _require_room(hub, conn, scope, max(announced, 1))
    part = hub.scratch / f"xorb-{secrets.token_hex(16)}"
    try:
        with _storage_errors(), _as_bad_request():
            with open(part, "xb") as file:
                intake = _Intake(file)
                async for data in _batches(body):
                    await asyncio.to_thread(intake.take, data)
                await asyncio.to_thread(intake.finish, name)
            path = _path(hub, scope, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            # The row first: it is what `sweep` finds, whatever happens to this process now.
            row = {"scope": scope, "hash": name, "size": intake.size, "expires": now() + KEPT}
            async with hub.db.write() as conn:
                if is_new:
                    await _require_room(hub, conn, scope, intake.size)
                await insert_missing(conn, schema.xorb, [row])
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return is_new


async def _batches(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    parts: list[bytes] = []
    waiting = total = 0
    async for data in body:
        parts.append(data)
        waiting, total = waiting + len(data), total + len(data)
        if total > codec.MAX_XORB:
            raise TooLarge(f"A xorb may have {codec.MAX_XORB} bytes; this one has more.")
        if waiting >= _BATCH:
            yield b"".join(parts)
            parts, waiting = [], 0
    yield b"".join(parts)


@dataclass
class _Intake:
    """Decodes a xorb as it comes, and writes what `_read_nodes` and `_read_segment` read."""

    file: IO[bytes]
    nodes: list[Node] = field(default_factory=list)
    size: int = 0
    rest: bytes = b""

    def take(self, data: bytes) -> None:
        buffer, used = self.rest + data, 0
        for end, chunk in codec.read_chunks(buffer):
            used = end
            self.file.write(chunk)
            self.nodes.append((codec.chunk_hash(chunk), len(chunk)))
            self.size += len(chunk)
            if self.size > codec.MAX_XORB or len(self.nodes) > codec.MAX_XORB_CHUNKS:
                raise TooLarge(
                    f"A xorb may have {codec.MAX_XORB} bytes in {codec.MAX_XORB_CHUNKS} chunks; this one has more."
                )
        self.rest = buffer[used:]

    def finish(self, name: str) -> None:
        codec.check_rest(self.rest)
        found = codec.hash_to_hex(codec.root(self.nodes))
        if not self.nodes or found != name:
            raise MalformedXet(f"The xorb's chunks have the hash {found}, but it was sent as {name}.")
        self.file.writelines(_ENTRY.pack(*node) for node in self.nodes)
        self.file.write(len(self.nodes).to_bytes(4, "little"))
        self.file.flush()
        os.fsync(self.file.fileno())


async def _require_room(hub: Hub, conn: AsyncConnection, scope: str, more: int) -> None:
    """A user's xorbs may fill their quota once more: they are no part of a repository, so nothing else counts them."""
    user = scope.partition("-")[0]
    query = sa.select(sa.func.coalesce(sa.func.sum(schema.xorb.c.size), 0)).where(
        schema.xorb.c.scope.like(f"{user}-%"), schema.xorb.c.expires > now()
    )
    used = int((await conn.execute(query)).scalar_one())
    quota = (await quotas.usage(hub, conn, int(user))).quota
    if used + more > quota:
        raise Forbidden(
            f"You have sent {used} bytes in two weeks, and {more} more are over the {quota} that you may hold. Wait, "
            "or set HF_HUB_DISABLE_XET=1 to upload without Xet."
        )


# ---- files ----------------------------------------------------------------------------------------------------------


async def commit_shard(
    hub: Hub, repo_id: int, scope: str, shard: bytes | bytearray, *, payer_id: int | None = None
) -> list[Blob]:
    """Makes the files of a shard part of the hub.

    Args:
        payer_id: the account whose quota they count for; None: the repository's owner.

    Raises:
        BadRequest: it is malformed, needs a xorb that is not here, or its hashes do not fit the chunks.
        Unprocessable: a file does not have the SHA-256 that the shard names, or its content is not allowed.
        TooLarge: its files are larger than the hub allows.
        Forbidden: the payer's quota is used up.
        DiskFull, StorageUnavailable: they cannot be stored.
    """
    files = await asyncio.to_thread(_read_files, hub, scope, shard)
    async with hub.db.read() as conn:
        owner_id = (await repos.by_id(conn, repo_id)).owner_id
        await quotas.require_room(
            hub, conn, payer_id or owner_id, {file.sha256 or file.hash.hex(): file.size for file in files}
        )
    return [
        await ingest_bytes(
            hub,
            _read_file(hub, scope, file),
            repo_id=repo_id,
            payer_id=payer_id,
            expect_sha256=file.sha256,
            expect_size=file.size,
        )
        for file in files
    ]


def _read_files(hub: Hub, scope: str, shard: bytes | bytearray) -> list[ShardFile]:
    """The files of a shard, after all that can be checked without reading their bytes."""
    with _as_bad_request(), _storage_errors():
        files = codec.read_shard(shard)
        if not files:
            raise MalformedXet("The shard describes no file.")
        if sum(file.size for file in files) > hub.settings.max_file:
            raise TooLarge(f"The files have more than {hub.settings.max_file} bytes, which is what this hub allows.")
        for file in files:
            _check_file(hub, scope, file)
        return files


def _check_file(hub: Hub, scope: str, file: ShardFile) -> None:
    nodes: list[Node] = []
    known: tuple[bytes, list[Node]] = (b"", [])
    for segment in file.segments:
        if segment.xorb != known[0]:
            known = segment.xorb, _read_nodes(_path(hub, scope, codec.hash_to_hex(segment.xorb)))
        part = known[1][segment.start : segment.end]
        if len(part) != segment.end - segment.start or not part or sum(n for _, n in part) != segment.length:
            raise MalformedXet(
                f"The shard names chunks {segment.start} to {segment.end} of a xorb, with {segment.length} bytes; the "
                f"xorb has {len(known[1])} chunks, and these are of another length."
            )
        nodes += part
    if codec.file_hash(nodes) != file.hash:
        raise MalformedXet(f"The chunks do not have the hash {codec.hash_to_hex(file.hash)} of the file.")


def _read_nodes(path: Path) -> list[Node]:
    try:
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            count = int.from_bytes(file.read(4), "little")
            file.seek(-4 - count * _ENTRY.size, os.SEEK_END)
            return list(_ENTRY.iter_unpack(file.read(count * _ENTRY.size)))
    except FileNotFoundError:
        raise MalformedXet(
            f"The xorb {path.name} is not here. Delete the client's cache ~/.cache/huggingface/xet, or set "
            "HF_HUB_DISABLE_XET=1, and upload again."
        ) from None


async def _read_file(hub: Hub, scope: str, file: ShardFile) -> AsyncIterator[bytes]:
    name, offsets = b"", [0]
    for segment in file.segments:
        path = _path(hub, scope, codec.hash_to_hex(segment.xorb))
        if segment.xorb != name:
            name, offsets = segment.xorb, await asyncio.to_thread(_offsets, path)
        position, end = offsets[segment.start], offsets[segment.end]
        while position < end:
            data = await asyncio.to_thread(_read, path, position, min(_BATCH, end - position))
            position += len(data)
            yield data


def _offsets(path: Path) -> list[int]:
    """Where each chunk of a stored xorb begins, and the last one ends."""
    found = [0]
    for _, length in _read_nodes(path):
        found.append(found[-1] + length)
    return found


def _read(path: Path, position: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(position)
        return file.read(size)


# ---- the end --------------------------------------------------------------------------------------------------------


async def sweep(hub: Hub, moment: datetime) -> int:
    """Deletes the xorbs that have expired.

    Returns:
        How many.
    """
    async with hub.db.write() as conn:
        query = sa.delete(schema.xorb).where(schema.xorb.c.expires <= moment)
        gone = (await conn.execute(query.returning(schema.xorb.c.scope, schema.xorb.c.hash))).all()
    for scope, name in gone:
        _path(hub, scope, name).unlink(missing_ok=True)
    for scope in {scope for scope, _ in gone}:
        folder = _folder(hub, scope)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return len(gone)


@contextmanager
def _as_bad_request() -> Iterator[None]:
    try:
        yield
    except MalformedXet as error:
        raise BadRequest(str(error)) from error


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("The hub's disk is full. Nothing was stored; tell its administrator.") from error
        raise StorageUnavailable(f"The hub cannot keep the upload: {error.strerror}.") from error
