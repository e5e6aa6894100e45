"""Who may call what: each route that changes something, or shows what is not for everyone, has a line in one table.

`Guarded` stands in front of every route and lets nobody pass who lacks what the line asks for. What only the route can
tell, such as which repository a body names, it asks of `accounts.Principal` and `repos.find` besides. An application
with a route that changes something and has no line does not start.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, ClassVar
from urllib.parse import quote

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from . import accounts, attempts
from .accounts import Principal
from .db.schema import now
from .errors import Forbidden, Unauthorized
from .http import SAFE, check_csrf, hub_of, principal_of

__all__ = ["FRESH", "RIGHTS", "Guarded", "Page", "Right", "Who", "check", "confirm", "is_fresh", "routes"]

FRESH = timedelta(minutes=15)  # so long after it was given, a session needs its password no second time


class Who(Enum):
    """Who may call a route."""

    UNASKED = "anyone: nothing is done, so it is not even asked who they are"
    ANYONE = "anyone: nothing is stored, or the form itself holds a password or a key"
    SIGNED = "whoever brings an address or a token that the hub has signed for just this"
    USER = "whoever has an account, with any token"
    PARTICIPANT = "whoever sees the repository, and may write somewhere"
    WRITER = "who may write to the repository, or in the namespace"
    REPO_ADMIN = "who manages the namespace of the repository"
    ORG_ADMIN = "who manages the organisation, with all that they may"
    ACCOUNT = "the holder of an account, with all that they may"
    ADMIN = "who runs the hub, with all that they may"


_WHOLE = (Who.ORG_ADMIN, Who.ACCOUNT, Who.ADMIN)  # a token that is limited to some repositories is not enough


@dataclass(frozen=True)
class Right:
    """What a route asks for.

    Attributes:
        who: may call it.
        writes: whether a token needs the role `write`.
        password: whether the account's password must have been given lately: in this session, or with this call in
            the header `X-Password`.
        but_oneself: whether it is not needed by those who are the `user` of the address: they only lose rights.
    """

    who: Who
    writes: bool = True
    password: bool = False
    but_oneself: bool = False


_REPO, _MODEL = "/{namespace}/{name}", "/api/models/{namespace}/{name}"
_TALK, _XET, _V1 = _MODEL + "/discussions", "/xet/{scope}", "/api/v1"
_LOOKS = Right(Who.ANYONE, writes=False)

RIGHTS: Mapping[tuple[str, str], Right] = {
    # ---- pages: with a session alone
    ("POST", "/login"): Right(Who.ANYONE),
    ("POST", "/logout"): Right(Who.ANYONE),
    ("POST", "/signup"): Right(Who.ANYONE),
    ("POST", "/setup/{key}"): Right(Who.ANYONE),
    ("GET", "/confirm"): Right(Who.ACCOUNT),
    ("POST", "/confirm"): Right(Who.ACCOUNT),
    ("GET", "/settings/profile"): Right(Who.ACCOUNT),
    ("POST", "/settings/profile"): Right(Who.ACCOUNT),
    ("POST", "/settings/password"): Right(Who.ACCOUNT),
    ("GET", "/settings/tokens"): Right(Who.ACCOUNT),
    ("POST", "/settings/tokens"): Right(Who.ACCOUNT, password=True),
    ("POST", "/settings/tokens/revoke"): Right(Who.ACCOUNT),
    ("GET", "/organizations/new"): Right(Who.ACCOUNT),
    ("POST", "/organizations/new"): Right(Who.ACCOUNT),
    ("POST", "/organizations/{name}/members"): Right(Who.ORG_ADMIN, password=True),
    ("GET", "/collections/new"): Right(Who.USER),
    ("POST", "/collections"): Right(Who.WRITER),
    ("GET", "/watching"): Right(Who.ACCOUNT),
    ("POST", "/watching"): Right(Who.ACCOUNT),
    ("POST", _REPO + "/like"): Right(Who.ACCOUNT),
    ("GET", "/admin"): Right(Who.ADMIN),
    ("POST", "/admin/accounts"): Right(Who.ADMIN, password=True),
    ("POST", "/admin/accounts/{name}"): Right(Who.ADMIN, password=True),
    ("POST", "/models"): _LOOKS,
    ("GET", "/upload"): Right(Who.USER),
    ("POST", "/upload"): Right(Who.PARTICIPANT),
    ("POST", "/upload/preview"): Right(Who.USER),
    ("GET", _REPO + "/discussions/new"): Right(Who.USER),
    ("POST", _REPO + "/discussions"): Right(Who.PARTICIPANT),
    ("POST", _REPO + "/discussions/{number:int}"): Right(Who.PARTICIPANT),
    ("GET", _REPO + "/settings"): Right(Who.REPO_ADMIN),
    ("POST", _REPO + "/settings"): Right(Who.REPO_ADMIN),
    # ---- the protocol of the Hugging Face hub
    ("POST", "/api/telemetry/{path:path}"): Right(Who.UNASKED),
    ("POST", "/api/validate-yaml"): _LOOKS,
    ("POST", "/api/repos/create"): Right(Who.WRITER),
    ("DELETE", "/api/repos/delete"): Right(Who.REPO_ADMIN),
    ("POST", "/api/repos/move"): Right(Who.REPO_ADMIN),
    ("PUT", _MODEL + "/settings"): Right(Who.REPO_ADMIN),
    ("POST", _MODEL + "/like"): Right(Who.ACCOUNT),
    ("DELETE", _MODEL + "/like"): Right(Who.ACCOUNT),
    ("POST", _MODEL + "/paths-info/{revision:path}"): _LOOKS,
    ("POST", "/api/models/{name}/paths-info/{revision:path}"): _LOOKS,
    ("POST", _MODEL + "/preupload/{revision:path}"): Right(Who.WRITER),  # who sees it may with create_pr
    ("POST", _MODEL + "/commit/{revision:path}"): Right(Who.WRITER),  # likewise
    ("GET", _MODEL + "/xet-write-token/{revision:path}"): Right(Who.PARTICIPANT),
    ("POST", _MODEL + "/branch/{revision:path}"): Right(Who.WRITER),
    ("DELETE", _MODEL + "/branch/{revision:path}"): Right(Who.WRITER),
    ("POST", _MODEL + "/tag/{revision:path}"): Right(Who.WRITER),
    ("DELETE", _MODEL + "/tag/{revision:path}"): Right(Who.WRITER),
    ("POST", _TALK): Right(Who.PARTICIPANT),
    ("POST", _TALK + "/{number:int}/comment"): Right(Who.PARTICIPANT),
    ("POST", _TALK + "/{number:int}/status"): Right(Who.WRITER),  # or its author
    ("POST", _TALK + "/{number:int}/merge"): Right(Who.WRITER),
    ("POST", _REPO + ".git/info/lfs/objects/batch"): Right(Who.PARTICIPANT),
    ("POST", _REPO + ".git/info/lfs/objects/verify"): _LOOKS,
    ("PUT", "/_lfs/{uid}/{oid}"): Right(Who.SIGNED),
    ("PUT", "/_lfs/parts/{upload}/{number:int}"): Right(Who.SIGNED),
    ("POST", "/_lfs/parts/{upload}"): Right(Who.SIGNED),
    ("POST", _XET + "/v1/xorbs/default/{name}"): Right(Who.SIGNED),
    ("POST", _XET + "/v1/shards"): Right(Who.SIGNED),
    ("POST", _XET + "/v2/shards"): Right(Who.SIGNED),
    ("POST", _XET + "/v1/xorb-grants/{prefix}/{name}"): Right(Who.SIGNED),
    ("POST", _XET + "/v1/telemetry"): Right(Who.UNASKED),
    ("POST", "/v1/telemetry"): Right(Who.UNASKED),
    # ---- the hub's own API
    ("POST", _V1 + "/check"): _LOOKS,
    ("POST", _V1 + "/yank"): Right(Who.WRITER),
    ("DELETE", _V1 + "/yank"): Right(Who.WRITER),
    ("PUT", _V1 + "/collections/{namespace}/{name}"): Right(Who.WRITER),
    ("DELETE", _V1 + "/collections/{namespace}/{name}"): Right(Who.WRITER),
    ("PUT", _V1 + "/preferred"): Right(Who.ADMIN),
    ("DELETE", _V1 + "/preferred"): Right(Who.ADMIN),
    ("POST", _V1 + "/orgs"): Right(Who.ACCOUNT),
    ("PUT", _V1 + "/orgs/{org}/members/{user}"): Right(Who.ORG_ADMIN, password=True),
    # Or the member, who leaves.
    ("DELETE", _V1 + "/orgs/{org}/members/{user}"): Right(Who.ORG_ADMIN, password=True, but_oneself=True),
    ("GET", _V1 + "/tokens"): Right(Who.ACCOUNT),
    ("POST", _V1 + "/tokens"): Right(Who.ACCOUNT, password=True),
    ("DELETE", _V1 + "/tokens/{id}"): Right(Who.ACCOUNT),
    ("GET", _V1 + "/usage/{namespace}"): Right(Who.ACCOUNT),
    ("PUT", _V1 + "/usage/{namespace}"): Right(Who.ADMIN, password=True),
    ("GET", _V1 + "/audit"): Right(Who.ADMIN),
    ("GET", "/metrics"): Right(Who.ADMIN, writes=False),
}


# ---- in front of each route -----------------------------------------------------------------------------------------


class Guarded(APIRoute):
    """A route that `RIGHTS` decides about."""

    prefix: ClassVar[str] = ""  # of the router that it is in
    sessions_only: ClassVar[bool] = False  # whether a token means nothing here

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's own handler, behind the gate."""
        handle = self.inner_handler()
        path = self.prefix + self.path
        if not any((method, path) in RIGHTS or method not in SAFE for method in self.methods or ()):
            return handle

        async def guarded(request: Request) -> Response:
            right = RIGHTS.get((request.method, path))
            if right is None:
                if request.method not in SAFE:
                    raise Forbidden("Nothing says who may do this, so nobody may. Tell the administrator of this hub.")
            elif right.who not in (Who.SIGNED, Who.UNASKED) and (elsewhere := await self._pass(request, right)):
                return elsewhere
            return await handle(request)

        return guarded

    def inner_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers those who may pass."""
        return super().get_route_handler()

    async def _pass(self, request: Request, right: Right) -> Response | None:
        """Lets the caller pass, or leads them elsewhere first.

        Raises:
            Unauthorized: it needs an account, and nobody is logged in.
            Forbidden: the caller or their token may not, a session did not say that it meant this, or the password is
                needed.
        """
        principal = await principal_of(request)
        if self.sessions_only:
            if principal.is_anonymous and right.who is not Who.ANYONE and request.method in SAFE:
                query = f"?{request.url.query}" if request.url.query else ""
                return RedirectResponse(f"/login?next={quote(request.url.path + query)}", 303)
        elif principal.session and request.method not in SAFE:
            check_csrf(principal, request.headers.get("x-csrf-token", ""))
        if right.who is Who.ANYONE:
            return None
        principal.require_user()
        if right.writes and right.who is not Who.USER and principal.role != "write":
            raise Forbidden("This token may only read. Use one with role 'write'.")
        if right.who in _WHOLE and principal.scope:
            raise Forbidden(
                f"This token is limited to {', '.join(principal.scope)}. Log in, or use one that is not limited."
            )
        if right.who is Who.ADMIN and not principal.is_admin:
            raise Forbidden("This is for the administrators of the hub.")
        spared = right.but_oneself and request.path_params.get("user") == principal.name
        if right.password and not spared and not is_fresh(principal):
            given = request.headers.get("x-password")
            if given is None:
                raise Forbidden(
                    "This needs your password. In the browser, confirm it at /confirm, then do it again; a program "
                    "sends it with this call, in the header X-Password."
                )
            await confirm(request, principal, given.encode("latin-1").decode("utf-8", "replace"))
        return None


class Page(Guarded):
    """A page of the site: browsers come with a session, and a token that another site made them send means nothing."""

    sessions_only = True


# ---- passwords ------------------------------------------------------------------------------------------------------


def is_fresh(principal: Principal) -> bool:
    """Whether a session's password was given lately."""
    return principal.confirmed is not None and now() - principal.confirmed < FRESH


async def confirm(request: Request, principal: Principal, password: str) -> None:
    """Lets those pass who know the password of their account; their session needs it no second time for a while.

    Raises:
        Forbidden: it is another one.
        TooManyRequests: too many others were tried.
    """
    hub = hub_of(request)
    try:
        browser = principal.session or f"token:{principal.token_id}"
        async with attempts.attempt(hub, principal.name, browser), hub.db.read() as conn:
            await accounts.check_password(conn, principal.name, password)
    except Unauthorized as error:
        raise Forbidden("Your password is another one. Nothing was changed.") from error
    if principal.session:
        async with hub.db.write() as conn:
            await accounts.confirm_session(conn, principal.session)


# ---- all routes -----------------------------------------------------------------------------------------------------


def routes(found: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Method, path and route of all routes, those of routers in routers too; mounted files are left out."""
    for route in found:
        if (inner := getattr(route, "original_router", None)) is not None:
            yield from routes(inner.routes, prefix + route.include_context.prefix)
        else:
            for method in sorted(getattr(route, "methods", None) or ()):
                yield method, prefix + route.path, route


def check(found: Any) -> None:
    """Refuses an application whose routes and `RIGHTS` do not fit.

    Raises:
        RuntimeError: a route that changes something has no line or no gate, or a line has no route.
    """
    known = {(method, path): route for method, path, route in routes(found)}
    unguarded = [
        f"{method} {path}"
        for (method, path), route in known.items()
        if (method not in SAFE or (method, path) in RIGHTS)
        and not ((method, path) in RIGHTS and isinstance(route, Guarded) and route.prefix + route.path == path)
    ]
    unknown = [f"{method} {path}" for method, path in RIGHTS.keys() - known.keys()]
    if unguarded or unknown:
        raise RuntimeError(
            f"Routes that nobody guards: {', '.join(unguarded) or 'none'}; lines of RIGHTS without a route: "
            f"{', '.join(sorted(unknown)) or 'none'}."
        )
