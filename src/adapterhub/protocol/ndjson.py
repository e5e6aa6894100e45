"""The body of a commit: one JSON object a line, each file's bytes in base64, read as they come."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import ingest, quotas
from ..changes.committing import Operation, Put, Remove, RemoveFolder
from ..content import kinds
from ..errors import BadRequest, TooLarge
from ..http import check_values
from ..names import check_path
from ..repos.commits import MAX_FILES
from ..repos.repos import Repo
from ..settings import KiB, MiB

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["Header", "read_operations"]

_MAX_LINE = 8 * MiB
_MAX_INLINE = 200 * MiB  # where all bytes come inside of commits
_MAX_LINES = 25_000
_BATCH = 64  # files that are kept together: one transaction for all of them
_IN_MEMORY = 4 * MiB  # of a commit's files; more go to the disk while it is read
_LARGE = 128 * KiB  # what is smaller costs less in place than the way to a thread and back
_CHECKED_EVERY = 64 * MiB  # after so many bytes it is asked whether there is room for them


@dataclass(frozen=True)
class Header:
    """The first line of a commit."""

    summary: str
    description: str = ""
    parent: str | None = None


async def read_operations(
    hub: Hub, repo: Repo, body: AsyncIterator[bytes], *, payer_id: int | None = None
) -> tuple[Header, list[Operation]]:
    """What a commit's body asks for. The bytes in it are taken into the hub once all of it was read.

    Args:
        payer_id: the account whose quota they count for; None: the repository's owner.

    Raises:
        BadRequest: a line is malformed or of an unknown kind, there is no header, or there are too many files.
        TooLarge: a line or their number is too large.
        Unprocessable: a file may not be kept.
        Forbidden: the payer's quota is used up.
        DiskFull, StorageUnavailable: the bytes cannot be stored.
    """
    with _Contents(hub, payer_id or repo.owner_id) as contents:
        header, operations = await _read(hub, body, contents)
        staged: list[ingest.Staged] = []
        try:
            async for path, data in contents.files():
                staged.append(await ingest.stage_bytes(hub, data, name=path))
                if len(staged) >= _BATCH:
                    await ingest.keep(hub, staged, repo_id=repo.id, payer_id=payer_id)
                    staged = []
            if staged:
                await ingest.keep(hub, staged, repo_id=repo.id, payer_id=payer_id)
        finally:
            for item in staged:
                item.path.unlink(missing_ok=True)
    return header, operations


class _Contents:
    """The bytes in a commit, set aside until all of it was read: in memory while they are few, else on the disk.

    Args:
        account_id: who is to pay for them.
    """

    def __init__(self, hub: Hub, account_id: int) -> None:
        self._hub = hub
        self._account_id = account_id
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(hub.scratch))  # noqa: SIM115
        self._files: list[tuple[str, int]] = []
        self._sizes: dict[str, int] = {}
        self._unchecked = 0

    def __enter__(self) -> _Contents:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    async def add(self, path: str, data: bytes) -> str:
        """Sets the bytes of a file aside; returns their SHA-256.

        Raises:
            Forbidden: with them, the account's quota is used up.
            DiskFull, StorageUnavailable: they cannot be stored.
        """

        def write() -> str:
            self._file.write(data)
            return hashlib.sha256(data).hexdigest()

        try:
            sha256 = await asyncio.to_thread(write) if len(data) >= _LARGE else write()
        except OSError as error:
            raise ingest.storage_error(error) from error
        self._files.append((path, len(data)))
        self._sizes[sha256] = len(data)
        self._unchecked += len(data)
        if self._unchecked >= _CHECKED_EVERY:
            self._unchecked = 0
            async with self._hub.db.read() as conn:
                await quotas.require_room(self._hub, conn, self._account_id, self._sizes)
        return sha256

    async def files(self) -> AsyncIterator[tuple[str, bytes]]:
        """Paths and bytes, in order."""
        self._file.seek(0)
        for path, size in self._files:
            yield path, await asyncio.to_thread(self._file.read, size) if size >= _LARGE else self._file.read(size)


async def _read(hub: Hub, body: AsyncIterator[bytes], contents: _Contents) -> tuple[Header, list[Operation]]:
    header: Header | None = None
    operations: list[Operation] = []
    paths: set[str] = set()
    longest = _MAX_INLINE if hub.settings.upload_mode == "inline" else max(_MAX_LINE, 2 * hub.settings.lfs_bytes)
    async for number, line in _numbered(body, longest):
        kind, value = _parse(number, line)
        if kind == "header":
            header = _header(value)
            continue
        if kind == "file":
            path, data = _file(number, value)
            operations.append(Put(path, await contents.add(path, data), lfs=False))
        else:
            operations.append(_operation(hub, number, kind, value))
        if isinstance(operations[-1], Put):
            paths.add(operations[-1].path)
        if len(paths) > MAX_FILES:
            raise BadRequest(f"More than {MAX_FILES} files are too many: that is what a repository may hold.")
    if header is None:
        raise BadRequest("The commit has no header line: {'key': 'header', 'value': {'summary': …}}.")
    return header, operations


async def _numbered(body: AsyncIterator[bytes], longest: int) -> AsyncIterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers from one."""
    buffer, number = bytearray(), 0
    async for chunk in body:
        start = len(buffer)
        buffer += chunk
        while (end := buffer.find(b"\n", start)) >= 0:
            number += 1
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            start = 0
            if number > _MAX_LINES:
                raise TooLarge(f"A commit may have {_MAX_LINES} lines. Split it.")
            if line.strip():
                yield number, line
        if len(buffer) > longest:
            raise TooLarge(
                f"Line {number + 1} has more than {longest} bytes. Upload large files apart from the commit."
            )
    if buffer.strip():
        yield number + 1, bytes(buffer)


def _parse(number: int, line: bytes) -> tuple[str, dict[str, Any]]:
    check_values(line)
    try:
        parsed = json.loads(line)
        kind, value = parsed["key"], parsed["value"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadRequest(f"Line {number} of the commit is not an object with 'key' and 'value'.") from error
    if not isinstance(value, dict) or (kind != "header" and not isinstance(value.get("path"), str)):
        raise BadRequest(f"Line {number} of the commit needs a 'value' that is an object with a 'path'.")
    return kind, value


def _header(value: dict[str, Any]) -> Header:
    summary, description = value.get("summary") or "", value.get("description") or ""
    parent = value.get("parentCommit")
    if not isinstance(summary, str) or not isinstance(description, str) or not isinstance(parent, str | None):
        raise BadRequest("The commit's 'summary', 'description' and 'parentCommit' must be texts.")
    return Header(summary[:1000], description[:65_536], parent or None)


def _file(number: int, value: dict[str, Any]) -> tuple[str, bytes]:
    path = check_path(value["path"])
    if value.get("encoding", "base64") != "base64" or not isinstance(value.get("content"), str):
        raise BadRequest(f"Line {number} of the commit: the content of {path} must be a text in base64.")
    try:
        return path, base64.b64decode(value["content"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"Line {number} of the commit: the content of {path} is not valid base64.") from error


def _operation(hub: Hub, number: int, kind: str, value: dict[str, Any]) -> Operation:
    path = value["path"]
    if kind == "deletedFile":
        return Remove(path)
    if kind == "deletedFolder":
        return RemoveFolder(path)
    if kind != "lfsFile":
        raise BadRequest(
            f"Line {number} of the commit: {kind!r} is not one of header, file, lfsFile, deletedFile, deletedFolder."
        )
    oid = value.get("oid")
    if not isinstance(oid, str) or len(oid) != 64 or value.get("algo", "sha256") != "sha256":
        raise BadRequest(f"Line {number} of the commit: {path} needs an 'oid', its SHA-256 in 64 digits.")
    if hub.settings.pickle_policy == "refuse" and (reason := kinds.refused_name(path)):
        raise BadRequest(reason)
    return Put(path, oid, lfs=True)
