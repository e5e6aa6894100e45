"""Downloading: the file of a path at a revision, whole or a range of it."""

from __future__ import annotations

import re
from urllib.parse import quote, urlencode

import sqlalchemy as sa
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from ..db import schema
from ..db.lookup import Lookup
from ..errors import EntryNotFound, Forbidden
from ..http import hub_of
from ..hub import Hub
from ..repos import commits
from ..repos.files import Entry
from .shared import Plain, at_revision

router = APIRouter(include_in_schema=False, route_class=Plain)

# These are fetched once by whoever uses the repository: they count as a download.
_COUNTED = ("adapter_config.json", "config.json")


@router.api_route("/{namespace}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
async def resolve(request: Request) -> Response:
    """A file, with the headers by which the client caches it."""
    hub, path = hub_of(request), request.path_params["path"]
    repo, head = await at_revision(request)
    entry = (await commits.manifest_at(hub.db, head.tree)).get(path)
    if entry is None:
        raise EntryNotFound("Entry not found", headers={"X-Repo-Commit": head.oid})
    await _refuse_quarantined(hub, entry)
    if request.method == "GET" and path in _COUNTED:
        request.app.state.downloads.add(repo.uid)
    headers = {"X-Repo-Commit": head.oid, "ETag": f'"{entry.etag}"', "Content-Disposition": _disposition(path)}
    if entry.lfs:
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry.size)}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    if entry.lfs and hub.settings.redirect_blobs and (url := await _signed_url(hub, entry)):
        return RedirectResponse(url, 302, headers)
    return send(request, hub, entry.sha256, entry.size, headers)


_QUARANTINED = Lookup(
    sa.select(schema.blob.c.size).where(
        schema.blob.c.sha256 == sa.bindparam("sha256"), schema.blob.c.state == "quarantined"
    )
)


async def _refuse_quarantined(hub: Hub, entry: Entry) -> None:
    if await hub.db.look_up(_QUARANTINED, sha256=entry.sha256):
        raise Forbidden(
            f"{entry.path} is quarantined: it can run code when it is loaded. Ask its author for safetensors."
        )


def _disposition(path: str) -> str:
    # Never shown in place: what users upload must not run as a page of this site.
    return f"attachment; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1], safe='')}"


async def _signed_url(hub: Hub, entry: Entry) -> str | None:
    name = entry.path.rsplit("/", 1)[-1]
    if url := await hub.blobs.url(entry.sha256, filename=name):
        return url
    expires, signature = hub.signer.sign("get", entry.sha256, entry.size, lifetime=600)
    return hub.url(f"_blob/{entry.sha256}?{urlencode({'size': entry.size, 'exp': expires, 'sig': signature})}")


@router.api_route("/_blob/{sha256}", methods=["GET", "HEAD"])
async def blob(request: Request) -> Response:
    """The bytes of a signed address."""
    hub, sha256, query = hub_of(request), request.path_params["sha256"], request.query_params
    try:
        size, expires = int(query["size"]), int(query["exp"])
    except (KeyError, ValueError) as error:
        raise Forbidden("This address is not complete. Ask the hub for a new one.") from error
    hub.signer.verify(expires, query.get("sig", ""), "get", sha256, size)
    return send(request, hub, sha256, size, {"ETag": f'"{sha256}"', "Content-Disposition": "attachment"})


def send(request: Request, hub: Hub, sha256: str, size: int, headers: dict[str, str]) -> Response:
    """The bytes of a blob, or the range of them that is asked for."""
    headers = {
        **headers,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, max-age=0, must-revalidate",
    }
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(size)})
    if hub.settings.accel_prefix and hub.blobs.local_path(sha256):
        inside = f"{hub.settings.accel_prefix.rstrip('/')}/{sha256[:2]}/{sha256[2:4]}/{sha256}"
        return Response(headers={**headers, "X-Accel-Redirect": inside})
    start, end = 0, size
    status = 200
    if (found := _range(request, size, headers["ETag"])) is not None:
        start, end = found
        if start >= end:
            return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
        status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    return StreamingResponse(hub.blobs.open(sha256, start, end), status, headers)


def _range(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """The range that is asked for, as a half-open interval, empty where it lies behind the end.

    None for the whole: where no range is asked for, or of another version, or several, or something that is no range.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", "").strip(), re.ASCII)
    if match is None or not (match[1] or match[2]) or request.headers.get("if-range", etag) != etag:
        return None
    if not match[1]:
        return max(size - int(match[2]), 0), size
    first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    return None if match[2] and last < first else (first, min(last + 1, size))
