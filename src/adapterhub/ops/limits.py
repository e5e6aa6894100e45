"""How often and how much one caller may ask: counted per account, else per address, in fixed windows."""

from __future__ import annotations

import functools
import ipaddress
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.dialects import postgresql
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from .. import accounts
from ..accounts import Principal
from ..db import schema
from ..errors import HubError, TooLarge, TooManyRequests
from ..http import SESSION_COOKIE, cookie_name, error_headers
from ..hub import Hub
from ..settings import MiB, Settings
from . import metrics

__all__ = ["Limiter", "kind_of", "takes_files"]

# The first rule that a request meets names its kind: (kind, methods, path). "" is not limited.
_KINDS: tuple[tuple[str, str, re.Pattern[str]], ...] = tuple(
    (kind, methods, re.compile(path))
    for kind, methods, path in (
        ("", "", r"/(static/|healthz$|readyz$|metrics$|favicon\.ico$|robots\.txt$)"),
        ("login", "POST", r"/(login|signup|join|setup)(/|$)"),
        ("upload", "", r"/(_lfs|xet)/"),
        ("resolve", "", r"/(_blob/|[^/]+/([^/]+/)?resolve/)"),
    )
)
# Routes that take files count their bytes themselves; all others get no body larger than this.
_TAKES_FILES = re.compile(r"/(_lfs/|xet/|api/models/[^/]+/[^/]+/commit/|upload$)")
MAX_BODY = 8 * MiB
# So many callers are remembered in one window; more share a count.
_MAX_CALLERS = 200_000
# With a shared table, a process reports after this part of a limit, so that it writes seldom.
_STEP = 50


def kind_of(method: str, path: str) -> str:
    """Which limit a request counts for; empty for none."""
    for kind, methods, pattern in _KINDS:
        if (not methods or method == methods) and pattern.match(path):
            return kind
    return "api"


def takes_files(path: str) -> bool:
    """Whether a route takes files, so that its body may be large."""
    return bool(_TAKES_FILES.match(path))


@dataclass(slots=True)
class _Window:
    """What callers did in one window of one kind."""

    number: int = -1
    counts: dict[str, int] = field(default_factory=dict)  # known to all processes
    unsent: dict[str, int] = field(default_factory=dict)  # known to this one only


class Limiter:
    """Counts requests, refuses those above the limit, and caps bodies.

    With several workers, each counts its share of the limit on SQLite; on PostgreSQL they count together.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self.shared = settings.workers > 1 and settings.database_url.startswith("postgresql")
        self._windows: dict[str, _Window] = {}
        # Accounts of tokens and sessions that were accepted, by what they are kept as, the oldest first.
        self._known: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, unless its caller has to wait or its body is too large."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        kind = kind_of(scope["method"], scope["path"])
        state = scope.setdefault("state", {})
        status = 0
        extra: dict[str, str] = {}

        async def sender(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if extra:
                    MutableHeaders(scope=message).update(extra)
            await send(message)

        brought = self._brought(scope)
        account = self._known.get(brought)
        try:
            if kind in self.settings.limits:
                extra |= await self._count(kind, f"ip:{self._address(scope)}" if account is None else f"id:{account}")
            if not takes_files(scope["path"]):
                receive = _capped(scope, receive)
            await self.app(scope, receive, sender)
        except HubError as error:
            if status:  # an answer has begun already
                raise
            response = await self._refusal(scope, receive, error)
            await response(scope, receive, sender)
        finally:
            self._learn(brought, state.get("principal"), status)
            metrics.observe(kind or "other", scope["method"], status or 500, time.perf_counter() - began)

    # ---- who ----------------------------------------------------------------------------------------------------

    def _address(self, scope: Scope) -> str:
        """The address of whoever called the outermost of our own proxies; without one, of whoever called us."""
        peer = (scope.get("client") or ("", 0))[0]
        if not self.settings.trust_forwarded:
            return _network(peer)
        # Each of our proxies has added who called it, to the line that was there or as one more. What stands before
        # those entries is the caller's own word.
        entries = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
        ours = entries[-self.settings.forwarded_hops :]
        return _network(_host(ours[0].strip()) or peer)

    def _brought(self, scope: Scope) -> str:
        """What a request's token or session would be kept as; empty where it brings none."""
        headers = Headers(scope=scope)
        if "authorization" in headers:
            return accounts.digest_of(headers["authorization"])
        cookie = cookie_name(self.settings, SESSION_COOKIE)
        if cookie in headers.get("cookie", ""):
            return accounts.digest(Request(scope).cookies.get(cookie, ""))
        return ""

    def _learn(self, brought: str, principal: Principal | None, status: int) -> None:
        """From now on what was accepted counts for its account; made-up tokens count for their caller's address."""
        accepted = principal is not None and (principal.token_id is not None or principal.session == brought)
        if principal is not None and principal.id is not None and brought and accepted:
            self._known[brought] = principal.id
            if len(self._known) > _MAX_CALLERS:
                del self._known[next(iter(self._known))]
        elif status == 401:
            self._known.pop(brought, None)

    # ---- how often ----------------------------------------------------------------------------------------------

    async def _count(self, kind: str, caller: str) -> Mapping[str, str]:
        """Counts a request; returns the headers that tell how many are left."""
        limit, seconds = self.settings.limits[kind]
        number, passed = divmod(int(time.time()), seconds)
        window = self._windows.setdefault(kind, _Window())
        if window.number != number:
            window.number, window.counts, window.unsent = number, {}, {}
        if len(window.counts) >= _MAX_CALLERS and caller not in window.counts:
            caller = "others"
        if self.shared:
            used = await self._count_together(window, kind, caller, limit)
        else:
            used = window.counts[caller] = window.counts.get(caller, 0) + 1
            limit = max(math.ceil(limit / self.settings.workers), 1)
        wait = seconds - passed
        if used > limit:
            raise TooManyRequests(kind, wait=wait, limit=limit, window=seconds)
        return {
            "RateLimit": f'"{kind}";r={limit - used};t={wait}',
            "RateLimit-Policy": f'"fixed window";"{kind}";q={limit};w={seconds}',
        }

    async def _count_together(self, window: _Window, kind: str, caller: str, limit: int) -> int:
        unsent = window.unsent.get(caller, 0) + 1
        if caller in window.counts and unsent < max(limit // _STEP, 1):
            window.unsent[caller] = unsent
            return window.counts[caller] + unsent
        window.unsent[caller] = 0
        hub: Hub = self.app.state.hub
        table = schema.rate
        add = postgresql.insert(table).values(key=f"{kind}:{caller}"[:120], window=window.number, count=unsent)
        add = add.on_conflict_do_update(
            index_elements=["key", "window"], set_={"count": table.c.count + add.excluded.count}
        )
        async with hub.db.write() as conn:
            total = int((await conn.execute(add.returning(table.c.count))).scalar_one())
            if caller not in window.counts:
                # Windows of other kinds have other lengths, and so other numbers.
                old = (table.c.key.startswith(f"{kind}:", autoescape=True), table.c.window < window.number)
                if not window.counts:
                    await conn.execute(sa.delete(table).where(*old))
        window.counts[caller] = total
        return total

    # ---- answers ------------------------------------------------------------------------------------------------

    async def _refusal(self, scope: Scope, receive: Receive, error: HubError) -> Response:
        """The answer that the application gives to an error: JSON, or a page for a browser."""
        handler = self.app.exception_handlers.get(HubError)
        if handler is None:
            return JSONResponse({"error": error.message, **error.details}, error.status, headers=error_headers(error))
        answer: Response = await handler(Request({**scope, "app": self.app}, receive), error)  # type: ignore[misc]
        return answer


def _host(entry: str) -> str | None:
    """The address in an entry of `X-Forwarded-For`, some of which have a port; None where it is none."""
    for host in (entry, entry.rpartition(":")[0].strip("[]"), entry.strip("[]")):
        try:
            return str(ipaddress.ip_address(host))
        except ValueError:
            continue
    return None


@functools.lru_cache(maxsize=10_000)
def _network(host: str) -> str:
    """What counts as one caller."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:64]
    if address.version == 6 and address.ipv4_mapped:
        return str(address.ipv4_mapped)
    # Whoever has one address of IPv6 has 2**64 of them.
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


def _capped(scope: Scope, receive: Receive) -> Receive:
    """Receives a body that has at most `MAX_BODY` bytes."""
    announced = Headers(scope=scope).get("content-length", "0")
    arrived = 0

    async def receiver() -> Message:
        nonlocal arrived
        message = await receive()
        arrived += len(message.get("body", b""))
        if arrived > MAX_BODY:
            raise TooLarge(f"The request's body has more than {MAX_BODY} bytes.")
        return message

    if announced.isdigit() and int(announced) > MAX_BODY:
        raise TooLarge(f"The request's body has {announced} bytes; at most {MAX_BODY} are taken here.")
    return receiver
