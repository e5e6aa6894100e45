"""What every route needs: the hub, the caller, and bodies and answers in the form the clients expect."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import unquote as _unquote

from starlette.requests import Request

from . import accounts
from .accounts import Principal
from .errors import BadRequest, Forbidden, HubError, TooLarge
from .hub import Hub
from .settings import MiB, Settings

__all__ = [
    "BROWSER_COOKIE",
    "MOST",
    "SAFE",
    "SESSION_COOKIE",
    "check_csrf",
    "check_origin",
    "check_values",
    "cookie_name",
    "error_headers",
    "flag",
    "header_line",
    "hub_of",
    "iso",
    "json_body",
    "principal_of",
    "unquote",
    "whole",
]

_N = TypeVar("_N", int, None)

SESSION_COOKIE = "adapterhub_session"
BROWSER_COOKIE = "adapterhub_browser"
SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
MOST = 2**31 - 1  # what every database's integers hold
_MAX_DEPTH = 64
_MAX_VALUES = 100_000
_MAX_EXACT = 32 * MiB  # up to here, separators inside of texts are told apart
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)


def hub_of(request: Request) -> Hub:
    """The hub that a request came to."""
    hub: Hub = request.app.state.hub
    return hub


def session_cookie(hub: Hub) -> str:
    """The name of the session's cookie."""
    return cookie_name(hub.settings, SESSION_COOKIE)


def cookie_name(settings: Settings, name: str) -> str:
    """The full name of a cookie: with `__Host-`, browsers send it over TLS to this host alone."""
    return f"__Host-{name}" if settings.public_url.startswith("https://") else name


async def principal_of(request: Request) -> Principal:
    """Who sent a request: told by its token, else by its session; on pages, by its session alone.

    Raises:
        Unauthorized: the token is not valid.
    """
    known: Principal | None = getattr(request.state, "principal", None)
    if known is not None:
        return known
    hub = hub_of(request)
    is_page = getattr(request.scope.get("route"), "sessions_only", False)
    authorization = None if is_page else request.headers.get("authorization")
    cookie = request.cookies.get(session_cookie(hub))
    principal = accounts.ANONYMOUS
    if authorization:
        principal = await accounts.authenticate(hub.db, authorization)
    elif cookie:
        principal = await accounts.session_principal(hub.db, cookie)
    if principal.token_id is not None and not accounts.was_seen_lately(principal):
        async with hub.db.write() as conn:
            await accounts.mark_seen(conn, principal.token_id)
    request.state.principal = principal
    return principal


def check_csrf(principal: Principal, given: str) -> None:
    """Lets a form pass that this hub has shown to this session.

    Raises:
        Forbidden: it brings another token, or none.
    """
    if principal.csrf and not hmac.compare_digest(principal.csrf.encode(), given.encode("utf-8", "surrogateescape")):
        raise Forbidden(
            "This form is too old, or did not come from this hub. Load the page again and send it once more."
        )


def check_origin(request: Request) -> None:
    """Lets a form pass that a page of this site has sent, as far as the browser tells where it comes from.

    Raises:
        Forbidden: it was sent from another site.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = {hub_of(request).settings.public_url, *(f"{scheme}://{request.headers.get('host')}" for scheme in _SCHEMES)}
    if site not in ("same-origin", "none") if site else origin is not None and origin not in map(_origin, own):
        raise Forbidden("This form was sent from another site. Load the page here and send it once more.")


def _origin(url: str) -> str:
    """Scheme, host and port, as browsers write them."""
    scheme, _, rest = url.lower().partition("://")
    host = rest.partition("/")[0]
    return f"{scheme}://{host.removesuffix(_SCHEMES.get(scheme, ''))}"


_SCHEMES = {"http": ":80", "https": ":443"}  # with the ports that they leave out


async def json_body(request: Request, *, limit: int = 2 * MiB) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        TooLarge: it has more than `limit` bytes.
        BadRequest: it is no JSON object, or one that is nested deeper than 64 levels.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"The request's body has more than {limit} bytes.")
    value = parse_json(bytes(body) or b"{}")
    if not isinstance(value, dict):
        raise BadRequest("The request's body must be a JSON object.")
    return value


def parse_json(data: bytes) -> Any:
    """The value of a JSON text, if it is nested at most 64 levels deep and has at most 100,000 values.

    Raises:
        BadRequest: it is not.
    """
    check_values(data)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The request's body is not JSON: {error}.") from error
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise BadRequest(f"The request's JSON is nested deeper than {_MAX_DEPTH} levels.")
        level = [child for item in level for child in _children(item)]
    return value


def check_values(data: bytes | bytearray) -> None:
    """Lets pass a JSON text that takes little more memory as values than as text: `[[],[],…]` takes twenty times more.

    Raises:
        BadRequest: it has more than 100,000 values.
    """
    found = _separators(data)
    # Longer texts are files in base64, in which there are no separators.
    if found > _MAX_VALUES and len(data) <= _MAX_EXACT:
        for text in islice(_STRING.finditer(data), 2 * _MAX_VALUES):
            found -= _separators(text[0])
    if found > _MAX_VALUES:
        raise BadRequest(f"The request's JSON has more than {_MAX_VALUES} values.")


def _separators(data: bytes | bytearray) -> int:
    return sum(map(data.count, (b",", b"[", b"{")))


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def whole(params: Mapping[str, Any], name: str, default: _N, *, most: int = MOST) -> int | _N:
    """The whole number of a query or a form, or a default where it has none.

    Raises:
        BadRequest: it is none of 0 to `most`.
    """
    text = str(params.get(name) or "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= most):
        raise BadRequest(f"{name}={text[:40]!r} must be a whole number from 0 to {most}.")
    return int(text)


def flag(value: Any) -> bool:
    """Whether a query's value means yes: clients send `true`, `True` and `1`."""
    return str(value).lower() in ("true", "1", "yes", "on")


def unquote(segment: str) -> str:
    """A path segment as the client meant it; `%2F` reaches the routes undecoded (see `app.RawPath`)."""
    return _unquote(segment)


def iso(moment: datetime) -> str:
    """A moment as the clients read it: `2026-11-20T17:53:57.000Z`."""
    return moment.astimezone(timezone.utc).isoformat()[:19] + ".000Z"


def error_headers(error: HubError) -> dict[str, str]:
    """The headers by which the client tells errors apart."""
    headers = {"X-Error-Message": header_line(error.message), **error.headers}
    return {"X-Error-Code": error.code, **headers} if error.code else headers


def header_line(text: str) -> str:
    """A text as a header can hold it: one line, in Latin-1, without control characters."""
    line = " ".join(text.split())[:500].encode("latin-1", "replace").decode("latin-1")
    return "".join(character if character.isprintable() else "?" for character in line)
