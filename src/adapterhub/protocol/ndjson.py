"""The body of a commit: one JSON object a line, each file's bytes in base64, read as they come."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..content import pickles
from ..errors import BadRequest, TooLarge
from ..http import check_values
from ..names import check_path
from ..repos.commits import Operation, Put, Remove, RemoveFolder
from ..repos.repos import Repo
from ..settings import MiB
from ..storage import ingest

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["Header", "read_operations"]

_MAX_LINE = 8 * MiB
_MAX_INLINE = 200 * MiB  # where all bytes come inside of commits
_MAX_LINES = 25_000
_BATCH = 64  # files that are kept together: one transaction for all of them


@dataclass(frozen=True)
class Header:
    """The first line of a commit."""

    summary: str
    description: str = ""
    parent: str | None = None


async def read_operations(
    hub: Hub, repo: Repo, body: AsyncIterator[bytes], *, payer_id: int | None = None
) -> tuple[Header, list[Operation]]:
    """What a commit's body asks for. The bytes in it are taken into the hub on the way.

    Args:
        payer_id: the account whose quota they count for; None: the repository's owner.

    Raises:
        BadRequest: a line is malformed or of an unknown kind, or there is no header.
        TooLarge: a line or their number is too large.
        Unprocessable: a file may not be kept.
        Forbidden: the payer's quota is used up.
    """
    header: Header | None = None
    operations: list[Operation] = []
    staged: list[ingest.Staged] = []
    longest = _MAX_INLINE if hub.settings.upload_mode == "inline" else max(_MAX_LINE, 2 * hub.settings.lfs_bytes)
    try:
        async for number, line in _numbered(body, longest):
            kind, value = _parse(number, line)
            if kind == "header":
                header = _header(value)
            elif kind == "file":
                staged.append(await _stage(hub, number, value))
                operations.append(Put(value["path"], staged[-1].blob.sha256, lfs=False))
                if len(staged) >= _BATCH:
                    await ingest.keep(hub, staged, repo_id=repo.id, payer_id=payer_id)
                    staged = []
            else:
                operations.append(_operation(hub, number, kind, value))
        if header is None:
            raise BadRequest("The commit has no header line: {'key': 'header', 'value': {'summary': …}}.")
        if staged:
            await ingest.keep(hub, staged, repo_id=repo.id, payer_id=payer_id)
            staged = []
    finally:
        for item in staged:
            item.path.unlink(missing_ok=True)
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


async def _stage(hub: Hub, number: int, value: dict[str, Any]) -> ingest.Staged:
    path = check_path(value["path"])
    if value.get("encoding", "base64") != "base64" or not isinstance(value.get("content"), str):
        raise BadRequest(f"Line {number} of the commit: the content of {path} must be a text in base64.")
    try:
        data = base64.b64decode(value["content"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"Line {number} of the commit: the content of {path} is not valid base64.") from error
    return await ingest.stage_bytes(hub, data, name=path)


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
    if hub.settings.pickle_policy == "refuse" and (reason := pickles.refused_name(path)):
        raise BadRequest(reason)
    return Put(path, oid, lfs=True)
