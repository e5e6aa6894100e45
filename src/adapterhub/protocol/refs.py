"""Branches, tags and the history of a repository."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..changes import committing
from ..errors import BadRequest
from ..http import flag, hub_of, iso, json_body, unquote, whole
from ..repos import commits, refs
from ..rights import Guarded
from .shared import API, caller_and_repo, commit_of

router = APIRouter(include_in_schema=False, route_class=Guarded)


@router.get(API + "/refs")
async def listing(request: Request) -> dict[str, Any]:
    """Branches and tags, and pull requests if asked for."""
    async with hub_of(request).db.read() as conn:
        _, repo = await caller_and_repo(request, conn)
        shown: dict[str, Any] = {"converts": []}
        kinds = {"branches": refs.HEADS, "tags": refs.TAGS}
        if flag(request.query_params.get("include_prs")):
            kinds["pullRequests"] = refs.PULLS
        for key, prefix in kinds.items():
            rows = await refs.listing(conn, repo, prefix)
            cut = "" if prefix == refs.PULLS else prefix
            names = [(row["name"].removeprefix(cut), row["name"], row["oid"]) for row in rows]
            shown[key] = [{"name": name, "ref": full, "targetCommit": oid} for name, full, oid in names]
    return shown


@router.get(API + "/commits/{revision:path}")
async def history(request: Request) -> Response:
    """A page of the history, the newest commit first."""
    page = whole(request.query_params, "p", 0, most=10**6)
    limit = min(max(whole(request.query_params, "limit", 50), 1), 1000)
    async with hub_of(request).db.read() as conn:
        _, repo = await caller_and_repo(request, conn)
        head = await commit_of(request, conn, repo)
        rows = await commits.history(conn, repo, head.oid, limit + 1, page * limit)
        total = await commits.depth(conn, repo, head.oid)
    shown = [
        {
            "id": row.oid,
            "title": row.title,
            "message": row.message,
            "authors": [{"user": row.author}],
            "date": iso(row.date),
        }
        for row in rows[:limit]
    ]
    headers = {"X-Total-Count": str(total)}
    if len(rows) > limit:
        following = hub_of(request).url(f"{request.scope['raw_path'].decode()}?p={page + 1}&limit={limit}")
        headers["Link"] = f'<{following}>; rel="next"'
    return JSONResponse(shown, headers=headers)


@router.post(API + "/branch/{revision:path}")
async def create_branch(request: Request) -> Response:
    """Makes a branch at `startingPoint`, else at the default branch."""
    body = await json_body(request)
    hub = hub_of(request)
    async with hub.db.write() as conn:
        _, repo = await caller_and_repo(request, conn, write=True)
        start = str(body.get("startingPoint") or repo.default_branch)
        oid = await refs.create(conn, repo, refs.HEADS, unquote(request.path_params["revision"]), start)
        await committing.take_over(hub, conn, repo, oid)
    return Response(status_code=201)


@router.delete(API + "/branch/{revision:path}")
async def delete_branch(request: Request) -> Response:
    """Removes a branch."""
    return await _delete(request, refs.HEADS)


@router.post(API + "/tag/{revision:path}")
async def create_tag(request: Request) -> Response:
    """Makes a tag at a revision."""
    body = await json_body(request)
    name, message = body.get("tag"), body.get("message") or ""
    if not isinstance(name, str) or not isinstance(message, str):
        raise BadRequest("The body needs the 'tag', a text.")
    hub = hub_of(request)
    async with hub.db.write() as conn:
        _, repo = await caller_and_repo(request, conn, write=True)
        oid = await refs.create(conn, repo, refs.TAGS, name, unquote(request.path_params["revision"]), message)
        await committing.take_over(hub, conn, repo, oid)
    return Response(status_code=201)


@router.delete(API + "/tag/{revision:path}")
async def delete_tag(request: Request) -> Response:
    """Removes a tag."""
    return await _delete(request, refs.TAGS)


async def _delete(request: Request, kind: str) -> Response:
    async with hub_of(request).db.write() as conn:
        _, repo = await caller_and_repo(request, conn, write=True)
        await refs.delete(conn, repo, kind, unquote(request.path_params["revision"]))
    return Response()
