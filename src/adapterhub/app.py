"""The application: its routes, and what surrounds every request."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import unquote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import api, protocol, rights, web
from .errors import BadRequest, Conflict, HubError, NotFound
from .http import error_headers
from .hub import Hub
from .legacy import dist
from .ops import metrics
from .ops.jobs import Jobs
from .ops.limits import Limiter
from .ops.setup import prepare
from .settings import Settings
from .web.errors import error_page
from .xet import routes as xet

__all__ = ["create_app"]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_LOG = logging.getLogger("adapterhub")
_CALLER = b"Authorization, Cookie"
_HEADERS = {
    b"content-security-policy": CONTENT_SECURITY_POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"strict-origin-when-cross-origin",
    b"cross-origin-opener-policy": b"same-origin",
}


def create_app(settings: Settings, *, jobs: bool = True) -> ASGIApp:
    """The hub of `settings` as an ASGI application.

    Args:
        jobs: whether this process also runs the timed jobs (collecting garbage, counting downloads).
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        hub = await Hub.open(settings)
        try:
            await prepare(hub)
            app.state.hub = hub
            async with Jobs(hub, enabled=jobs) as running:
                app.state.downloads = running.downloads
                yield
        finally:
            await hub.close()

    app = FastAPI(
        title=settings.name,
        version="1",
        summary="Find, compare and fetch adapters.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.mount("/static", web.static)
    # Side by side, not router in router: FastAPI would look for the route of a request twice on each level.
    app.router.routes += [*protocol.routes, *metrics.router.routes, *xet.router.routes]
    app.include_router(api.router)
    app.router.routes += [*dist.router.routes, *web.routes]
    rights.check(app.routes)
    app.add_exception_handler(HubError, _answer)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(IntegrityError, _answer_late)
    app.add_exception_handler(500, _answer_unexpected)
    return RawPath(Headers(Limiter(app, settings)))


class RawPath:
    """Routes on the path as it was sent, so that `%2F` in a branch's name does not split it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the call on, with `%2F` kept in `scope["path"]`."""
        if scope["type"] == "http" and b"%" in (raw := scope.get("raw_path") or b""):
            path = raw.split(b"?")[0].decode("ascii", "replace")
            scope = {**scope, "path": unquote(re.sub("%2[fF]", "%252F", path), errors="replace")}
        await self.app(scope, receive, send)


class Headers:
    """Adds the headers that keep answers from other sites and other callers, where a route has not set its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the call on, and adds the headers to the answer."""

        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower(): value for name, value in message["headers"]}
                missing = [(name, value) for name, value in _HEADERS.items() if name not in present]
                if not scope["path"].startswith("/static/"):
                    missing += _for_one_caller(present)
                message = {**message, "headers": [*message["headers"], *missing]}
            await send(message)

        await self.app(scope, receive, sender if scope["type"] == "http" else send)


def _for_one_caller(present: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that may depend on who asks: nobody else may get it, nor the same caller unasked."""
    kept = present.get(b"cache-control")
    if kept is not None and b"public" in kept:
        return []
    varies = [] if b"vary" in present else [(b"vary", _CALLER)]
    return varies if kept is not None else [(b"cache-control", b"private, no-cache"), *varies]


# ---- errors ---------------------------------------------------------------------------------------------------------


async def _answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    if _wants_page(request):
        return await error_page(request, error)
    return JSONResponse({"error": error.message, **error.details}, error.status, headers=error_headers(error))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        known: HubError = NotFound(f"There is nothing at {request.method} {path}.")
    elif error.status_code == 405:
        allowed = ", ".join(_methods(request))
        known = BadRequest(f"{path} takes {allowed}, not {request.method}.", headers={"Allow": allowed})
    else:
        known = BadRequest(str(error.detail))
    known.status = error.status_code
    return await _answer(request, known)


def _methods(request: Request) -> list[str]:
    """The methods of all routes of a path; the error itself knows those of the first one."""
    routes = request.app.routes
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    return [m for m in known if any(r.matches({**request.scope, "method": m})[0] is Match.FULL for r in routes)]


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
    known = BadRequest("; ".join(problems), details={"problems": problems})
    known.status = 422
    return await _answer(request, known)


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    return await _answer(request, HubError("The hub made a mistake. It is in its log; please tell its administrator."))


async def _answer_late(request: Request, error: Exception) -> Response:
    """On PostgreSQL, for the second of two who make the same thing at once."""
    _LOG.warning("%s %s met rows that are there already: %s", request.method, request.url.path, error)
    return await _answer(request, Conflict("Somebody made the same at this moment. See what is there, then try again."))


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """For a client that has hung up: it reads nothing, and the hub has done nothing wrong."""
    return Response(status_code=499)


def _wants_page(request: Request) -> bool:
    machine = (
        request.url.path.startswith(("/api/", "/dist/", "/xet/", "/_lfs/", "/_blob/"))
        or "/resolve/" in request.url.path
    )
    return not machine and "text/html" in request.headers.get("accept", "")
