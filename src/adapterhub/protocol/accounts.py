"""Who am I, and calls that clients make beside their work."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..errors import Unauthorized
from ..http import iso, principal_of
from ..rights import Guarded

router = APIRouter(include_in_schema=False, route_class=Guarded)


@router.get("/api/whoami-v2")
async def whoami(request: Request) -> dict[str, Any]:
    """The caller, their organisations and their token."""
    principal = await principal_of(request)
    if principal.is_anonymous:
        message = "Invalid credentials in Authorization header"
        raise Unauthorized(message, headers={"X-Error-Message": message})
    orgs = [(name, role) for name, role in principal.namespaces.items() if name != principal.name]
    shown: dict[str, Any] = {"type": "session"}
    if principal.token:
        token = {"displayName": principal.token["displayName"], "role": principal.role}
        shown = {"type": "access_token", "accessToken": {**token, "createdAt": iso(principal.token["created"])}}
    return {
        "type": "user",
        "id": str(principal.id),
        "name": principal.name,
        "fullname": principal.name,
        "isPro": False,
        "orgs": [{"type": "org", "id": n, "name": n, "fullname": n, "roleInOrg": role} for n, role in orgs],
        "auth": shown,
    }


@router.api_route("/api/telemetry/{path:path}", methods=["HEAD", "GET", "POST"])
async def telemetry(path: str) -> Response:
    """Nothing is stored."""
    return Response(status_code=204)


@router.get("/api/models-tags-by-type")
async def tags_by_type() -> dict[str, Any]:
    """The hub's tags come from its cards; there is no fixed list."""
    return {}
