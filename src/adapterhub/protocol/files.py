"""Downloading: the file of a path at a revision, whole or a range of it."""

from __future__ import annotations

import functools
from urllib.parse import urlencode

import sqlalchemy as sa
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..db import schema
from ..db.lookup import Lookup
from ..errors import EntryNotFound, Forbidden
from ..http import hub_of
from ..hub import Hub
from ..repos import commits
from ..repos.files import Entry
from .sending import disposition, send
from .shared import Plain, at_revision
from .upstream import or_upstream

router = APIRouter(include_in_schema=False, route_class=Plain)

# These are fetched once by whoever uses the repository: they count as a download.
_COUNTED = ("adapter_config.json", "config.json")


@router.api_route("/{namespace}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
@or_upstream
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
    headers = {"X-Repo-Commit": head.oid, "ETag": f'"{entry.etag}"', "Content-Disposition": disposition(path)}
    if entry.lfs:
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry.size)}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    if entry.lfs and hub.settings.redirect_blobs and (url := await _signed_url(hub, entry)):
        return RedirectResponse(url, 302, headers)
    return _send(request, hub, entry.sha256, entry.size, headers)


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
    return _send(request, hub, sha256, size, {"ETag": f'"{sha256}"', "Content-Disposition": "attachment"})


def _send(request: Request, hub: Hub, sha256: str, size: int, headers: dict[str, str]) -> Response:
    inside = None
    if hub.settings.accel_prefix and hub.blobs.local_path(sha256):
        inside = f"{hub.settings.accel_prefix.rstrip('/')}/{sha256[:2]}/{sha256[2:4]}/{sha256}"
    return send(request, headers, size, functools.partial(hub.blobs.open, sha256), inside=inside)
