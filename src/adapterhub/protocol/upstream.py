"""Repositories of the hub behind this one, where a hub has such a one: read as if they were here."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable

import sqlalchemy as sa
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .. import names
from ..db import schema
from ..db.engine import insert_missing
from ..errors import BadRequest, RepoNotFound
from ..http import hub_of, unquote
from ..hub import Hub
from ..upstream import Answer, Upstream
from .sending import disposition, send
from .shared import Plain, paths_of

__all__ = ["or_upstream"]

Handler = Callable[[Request], Awaitable[Response]]

router = APIRouter(include_in_schema=False, route_class=Plain)


def or_upstream(handler: Handler) -> Handler:
    """A handler that asks the hub behind this one where this one does not know the repository of the path."""

    @functools.wraps(handler)
    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except RepoNotFound:
            if (hub := hub_of(request)).upstream is None or not await _is_foreign(hub, _repo(request)):
                raise
            return await _pass_on(request, hub, hub.upstream)

    return handle


@router.get("/api/models/{name}/revision/{revision:path}")
@router.get("/api/models/{name}")
@router.get("/api/models/{name}/tree/{revision}")
@router.get("/api/models/{name}/tree/{revision}/{path:path}")
@router.post("/api/models/{name}/paths-info/{revision:path}")
@router.api_route("/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
@or_upstream
async def without_namespace(request: Request) -> Response:
    """What only the hub behind can have: repositories of the oldest names, such as `bert-base-uncased`."""
    raise RepoNotFound(anonymous=False)  # none of that name is here, not even a private one


def _repo(request: Request) -> str:
    path = request.path_params
    return f"{path['namespace']}/{path['name']}" if "namespace" in path else str(path["name"])


async def _is_foreign(hub: Hub, repo: str) -> bool:
    """Whether a repository may be asked for elsewhere: it is called like none that is or could be here.

    What is private here is in a namespace of this hub, so its name goes nowhere; nor does that of a task.
    """
    namespace, slash, name = repo.partition("/")
    try:
        for part in (namespace, name) if slash else (namespace,):
            names.check_repo_name(part)
    except BadRequest:
        return False
    if not slash:
        return True
    here = sa.select(schema.account.c.id).where(schema.account.c.name_key == names.key(namespace))
    task = sa.select(schema.task.c.id).where(schema.task.c.id == namespace.lower())
    async with hub.db.read() as conn:
        return (await conn.execute(here)).first() is None and (await conn.execute(task)).first() is None


async def _pass_on(request: Request, hub: Hub, upstream: Upstream) -> Response:
    path = request.path_params
    revision = unquote(path["revision"]) if "revision" in path else None
    raw = request.scope["raw_path"].decode().partition("?")[0]
    if not request.url.path.startswith("/api/"):
        response = await _file(request, upstream, revision or "main", path["path"])
    elif request.method == "POST":
        response = _json(
            hub, upstream, await upstream.paths(request.scope["raw_path"].decode(), await paths_of(request))
        )
    else:
        raw = request.scope["raw_path"].decode().partition("?")[0]
        response = _json(hub, upstream, await upstream.answer(raw, request.url.query, revision))
    response.headers["X-Upstream"] = upstream.url
    await _claim(hub, upstream, _repo(request))
    return response


async def _file(request: Request, upstream: Upstream, revision: str, path: str) -> Response:
    file = await upstream.file_at(_repo(request), revision, path)
    etag = f'"{file.hash}"'
    headers = {"X-Repo-Commit": file.commit, "ETag": etag, "Content-Disposition": disposition(path)}
    if len(file.hash) == 64:
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(file.size)}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return send(request, headers, file.size, _nothing)
    return send(request, headers, file.size, (await upstream.open(file)).read)


async def _nothing(start: int, end: int) -> AsyncIterator[bytes]:
    return
    yield


def _json(hub: Hub, upstream: Upstream, answer: Answer) -> Response:
    """An answer of the API, in which the address of the next page is of this hub."""
    headers = dict(answer.headers)
    if link := headers.get("link"):
        headers["link"] = link.replace(f"<{upstream.url}/", f"<{hub.url('')}")
    return Response(answer.body, headers=headers, media_type="application/json")


async def _claim(hub: Hub, upstream: Upstream, repo: str) -> None:
    """Writes down whose repository was served, so that no account takes the name over: see `claims`."""
    namespace, slash, _ = repo.partition("/")
    if not slash or namespace in upstream.claimed:
        return
    upstream.claimed.add(namespace)
    row = {"name": namespace, "name_key": names.key(namespace), "repo": repo}
    async with hub.db.write() as conn:
        await insert_missing(conn, schema.upstream_namespace, [row])
