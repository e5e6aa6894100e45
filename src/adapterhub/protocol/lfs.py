"""Large files: announced in a batch, sent to signed addresses, whole or in parts."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import quotas
from ..changes import committing
from ..db import schema
from ..db.schema import now
from ..errors import BadRequest, Conflict, EntryNotFound, Forbidden, NotFound, TooLarge
from ..http import hub_of, json_body
from ..hub import Hub
from ..ingest import ingest, renew, storage_error
from ..repos import discussions, repos
from ..repos.repos import Repo
from ..rights import Guarded
from ..storage.blobs import CHUNK
from ..storage.disk import fsync_file
from .shared import caller_and_repo

router = APIRouter(include_in_schema=False, route_class=Guarded)

_GIT = "/{namespace}/{name}.git/info/lfs/objects"
_MAX_OBJECTS = 1000
_TWICE = 2  # so often a part may come at once: again, before it was noticed that the first connection is dead
_receiving: Counter[Path] = Counter()


@router.post(_GIT + "/batch")
async def batch(request: Request) -> Response:
    """Where each file is to be sent; files that are here need not be sent."""
    hub, body = hub_of(request), await json_body(request)
    if body.get("operation") != "upload":
        raise BadRequest("Only operation 'upload' is served here; download from /<namespace>/<name>/resolve/….")
    objects = [_announced(hub, item) for item in body.get("objects") or []]
    if len(objects) > _MAX_OBJECTS:
        raise BadRequest(f"{len(objects)} files are too many: announce at most {_MAX_OBJECTS} at once.")
    multipart = "multipart" in (body.get("transfers") or []) and any(
        size > hub.settings.multipart_bytes for _, size in objects
    )
    async with hub.db.read() as conn:
        principal, repo = await caller_and_repo(request, conn)
        discussions.require_participant(principal, repo)
        payer = repos.payer_of(principal, repo)
        await quotas.require_room(hub, conn, payer or repo.owner_id, dict(objects))
        present = await committing.usable(conn, principal, repo, {oid for oid, _ in objects})
    if present:
        async with hub.db.write() as conn:  # so that they are not collected before the commit names them
            await renew(hub, conn, repo.id, present, payer_id=payer)
    missing = {oid: size for oid, size in objects if oid not in present}
    parted = {oid: size for oid, size in missing.items() if multipart and size > hub.settings.multipart_bytes}
    uploads = await _reserve(hub, repo, payer, parted) if parted else {}
    verify = {"href": hub.url(f"{repo.full_name}.git/info/lfs/objects/verify")}
    shown = []
    for oid, size in objects:
        item: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
        if oid in uploads:
            item["actions"] = {"upload": _parts(hub, uploads[oid], payer, size), "verify": verify}
        elif oid in missing:
            item["actions"] = {"upload": _whole(hub, repo, payer, oid, size), "verify": verify}
        shown.append(item)
    answer = {"transfer": "multipart" if multipart else "basic", "objects": shown}
    return JSONResponse(answer, media_type="application/vnd.git-lfs+json")


def _announced(hub: Hub, item: Any) -> tuple[str, int]:
    oid, size = (item.get("oid"), item.get("size")) if isinstance(item, dict) else (None, None)
    if not isinstance(oid, str) or not re.fullmatch("[0-9a-f]{64}", oid):
        raise BadRequest(f"oid={oid!r} must be a SHA-256 of 64 hexadecimal digits.")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= hub.settings.max_file:
        raise TooLarge(f"size={size!r} must be a number of bytes up to {hub.settings.max_file}.")
    return oid, size


def _whole(hub: Hub, repo: Repo, payer: int | None, oid: str, size: int) -> dict[str, Any]:
    expires, signature = hub.signer.sign("put", repo.uid, payer or 0, oid, size)
    return {"href": hub.url(f"_lfs/{repo.uid}/{oid}?size={size}&payer={payer or 0}&exp={expires}&sig={signature}")}


async def _reserve(hub: Hub, repo: Repo, payer: int | None, sizes: Mapping[str, int]) -> dict[str, str]:
    """Opens uploads in parts, for which there must be room from now on; one that is open goes on.

    Returns:
        Their ids, by SHA-256.

    Raises:
        Forbidden: the payer's quota is used up.
    """
    account_id, table, uploads = payer or repo.owner_id, schema.upload, {}
    parts = {"bytes": hub.settings.multipart_bytes, "payer": account_id}
    async with hub.db.write() as conn:
        # Whoever reserves for the same account waits here, and then sees what is reserved.
        await conn.execute(sa.select(schema.account.c.id).where(schema.account.c.id == account_id).with_for_update())
        await quotas.require_room(hub, conn, account_id, sizes)
        mine = sa.select(table).where(table.c.repo_id == repo.id, table.c.oid.in_(sizes), table.c.expires > now())
        known = {row["oid"]: row["id"] for row in (await conn.execute(mine)).mappings() if row["parts"] == parts}
        expires = now() + timedelta(days=1)
        for oid, size in sizes.items():
            uploads[oid] = known.get(oid) or secrets.token_hex(16)
            if oid in known:
                await conn.execute(sa.update(table).where(table.c.id == known[oid]).values(expires=expires))
            else:
                values = {"id": uploads[oid], "repo_id": repo.id, "oid": oid, "size": size, "parts": parts}
                await conn.execute(sa.insert(table).values(**values, expires=expires))
    return uploads


def _parts(hub: Hub, upload: str, payer: int | None, size: int) -> dict[str, Any]:
    step = hub.settings.multipart_bytes
    expires, signature = hub.signer.sign("complete", upload, payer or 0, lifetime=24 * 3600)
    header = {"chunk_size": str(step)}
    for number in range(1, -(-size // step) + 1):
        length = min(step, size - (number - 1) * step)
        until, part = hub.signer.sign("part", upload, number, length, lifetime=24 * 3600)
        header[str(number)] = hub.url(f"_lfs/parts/{upload}/{number}?size={length}&exp={until}&sig={part}")
    address = f"_lfs/parts/{upload}?payer={payer or 0}&exp={expires}&sig={signature}"
    return {"href": hub.url(address), "header": header}


def _signature(request: Request) -> tuple[int, str]:
    """When the address ends, and its signature."""
    return _number(request, "exp"), request.query_params.get("sig", "")


def _number(request: Request, name: str) -> int:
    try:
        return int(request.query_params[name])
    except (KeyError, ValueError) as error:
        raise Forbidden("This address is not complete. Ask the hub for a new one.") from error


@router.put("/_lfs/{uid}/{oid}")
async def put(request: Request, uid: str, oid: str) -> Response:
    """Takes a whole file."""
    hub, size, payer = hub_of(request), _number(request, "size"), _number(request, "payer")
    hub.signer.verify(*_signature(request), "put", uid, payer, oid, size)
    async with hub.db.read() as conn:
        repo = await repos.by_uid(conn, uid)
    async with quotas.arriving(hub, payer or repo.owner_id, oid, size):
        await ingest(
            hub, request.stream(), repo_id=repo.id, payer_id=payer or None, expect_sha256=oid, expect_size=size
        )
    return Response()


@router.put("/_lfs/parts/{upload}/{number:int}")
async def put_part(request: Request, upload: str, number: int) -> Response:
    """Takes a part of a file."""
    hub, size = hub_of(request), _number(request, "size")
    hub.signer.verify(*_signature(request), "part", upload, number, size)
    await _find(hub, upload)
    path = _part(hub, upload, number)
    if _receiving[path] >= _TWICE:
        raise Conflict(f"Part {number} of this upload is being sent already. Wait until that has ended.")
    arriving = path.with_suffix(f".{secrets.token_hex(4)}")
    _receiving[path] += 1
    try:
        path.parent.mkdir(exist_ok=True)
        await _receive(request.stream(), arriving, size)
        arriving.replace(path)
    except OSError as error:
        raise storage_error(error) from error
    finally:
        arriving.unlink(missing_ok=True)
        _receiving[path] -= 1
        if not _receiving[path]:
            del _receiving[path]
    return Response(headers={"ETag": f'"{upload}-{number}"'})


async def _receive(chunks: AsyncIterator[bytes], path: Path, size: int) -> None:
    arrived = 0
    with open(path, "xb") as file:
        async for chunk in chunks:
            arrived += len(chunk)
            if arrived > size:
                raise TooLarge(f"More than the {size} bytes of this part came.")
            file.write(chunk)
    if arrived != size:
        raise BadRequest(f"{arrived} of the {size} bytes of this part came. Send it again.")
    await asyncio.to_thread(fsync_file, path)


@router.post("/_lfs/parts/{upload}")
async def complete(request: Request, upload: str) -> dict[str, Any]:
    """Puts the parts of a file together."""
    hub, payer = hub_of(request), _number(request, "payer")
    hub.signer.verify(*_signature(request), "complete", upload, payer)
    await json_body(request)
    row = await _find(hub, upload)
    count = -(-row["size"] // row["parts"]["bytes"])
    paths = [_part(hub, upload, number) for number in range(1, count + 1)]
    missing = [str(number) for number, path in enumerate(paths, 1) if not path.exists()]
    if missing:
        raise BadRequest(f"Parts {', '.join(missing)} of {count} are missing. Send them, then complete the upload.")
    try:
        await ingest(
            hub,
            _joined(paths),
            repo_id=row["repo_id"],
            payer_id=payer or None,
            expect_sha256=row["oid"],
            expect_size=row["size"],
        )
    finally:
        await discard(hub, upload)
    return {"success": True}


async def _joined(paths: list[Path]) -> AsyncIterator[bytes]:
    for path in paths:
        with open(path, "rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk


async def _find(hub: Hub, upload: str) -> sa.RowMapping:
    async with hub.db.read() as conn:
        query = sa.select(schema.upload).where(schema.upload.c.id == upload, schema.upload.c.expires > now())
        row = (await conn.execute(query)).mappings().one_or_none()
    if row is None:
        raise NotFound("This upload is finished, was given up or has expired. Start it again.")
    return row


def _part(hub: Hub, upload: str, number: int) -> Path:
    return hub.scratch / f"parts-{upload}" / str(number)


async def discard(hub: Hub, upload: str) -> None:
    """Forgets an upload in parts, with the parts that came."""
    folder = _part(hub, upload, 0).parent
    for path in folder.glob("*"):
        path.unlink(missing_ok=True)
    if folder.exists():
        folder.rmdir()
    async with hub.db.write() as conn:
        await conn.execute(sa.delete(schema.upload).where(schema.upload.c.id == upload))


@router.post(_GIT + "/verify")
async def verify(request: Request) -> Response:
    """Whether a file has arrived."""
    hub, body = hub_of(request), await json_body(request)
    oid, size = _announced(hub, body)
    async with hub.db.read() as conn:
        principal, repo = await caller_and_repo(request, conn)
        known = await committing.usable(conn, principal, repo, [oid])
    if oid not in known or known[oid][1] != size:
        raise EntryNotFound(f"The {size} bytes with SHA-256 {oid} have not arrived. Upload them again.")
    return Response()
