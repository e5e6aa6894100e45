"""Creating, moving, hiding and deleting repositories."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .. import accounts, interest
from ..accounts import Principal
from ..changes import manage
from ..errors import BadRequest
from ..http import hub_of, iso, json_body, principal_of
from ..rights import Guarded
from .shared import API, caller_and_repo

router = APIRouter(include_in_schema=False, route_class=Guarded)


@router.post("/api/repos/create")
async def create(request: Request) -> dict[str, Any]:
    """Makes a repository; one that exists is an error whose body has its address."""
    principal, body = await principal_of(request), await json_body(request)
    private = body.get("visibility") == "private" or body.get("private") is True
    repo = await manage.create(hub_of(request), principal, _full_name(principal, body), private=private)
    return {"url": hub_of(request).url(repo.full_name), "name": repo.full_name, "id": repo.uid}


@router.delete("/api/repos/delete")
async def delete(request: Request) -> Response:
    """Deletes a repository."""
    principal, body = await principal_of(request), await json_body(request)
    await manage.delete(hub_of(request), principal, _full_name(principal, body))
    return Response()


def _full_name(principal: Principal, body: dict[str, Any]) -> str:
    kind = body.get("type") or "model"
    if kind != "model":
        raise BadRequest(f"type={kind!r}: this hub keeps adapters and models, so type must be 'model' or left out.")
    name = body.get("name")
    if not isinstance(name, str):
        raise BadRequest("The body needs the repository's 'name'.")
    principal.require_user()
    return name if "/" in name else f"{body.get('organization') or principal.name}/{name}"


@router.post("/api/repos/move")
async def move(request: Request) -> dict[str, Any]:
    """Renames a repository; its old name leads to it."""
    principal, body = await principal_of(request), await json_body(request)
    old, new = body.get("fromRepo"), body.get("toRepo")
    if not isinstance(old, str) or not isinstance(new, str):
        raise BadRequest("The body needs 'fromRepo' and 'toRepo', each of the form 'namespace/name'.")
    await manage.move(hub_of(request), principal, old, new)
    return {"success": True}


@router.put(API + "/settings")
async def settings(request: Request) -> dict[str, Any]:
    """Hides or shows a repository."""
    hub, body = hub_of(request), await json_body(request)
    async with hub.db.read() as conn:
        principal, repo = await caller_and_repo(request, conn, admin=True)
    if body.get("gated"):
        raise BadRequest("This hub has no gated repositories; set visibility to 'private' instead.")
    if not {"private", "visibility"} & body.keys():
        return {"private": repo.private}
    private = body.get("private") is True or body.get("visibility") == "private"
    await manage.set_private(hub, principal, repo.full_name, private)
    return {"private": private}


@router.post(API + "/like")
async def like(request: Request) -> dict[str, Any]:
    """Notes that the caller likes a repository."""
    async with hub_of(request).db.write() as conn:
        principal, repo = await caller_and_repo(request, conn)
        await interest.like(conn, principal.require_user(), repo)
    return {}


@router.delete(API + "/like")
async def unlike(request: Request) -> dict[str, Any]:
    """Takes a like back."""
    async with hub_of(request).db.write() as conn:
        principal, repo = await caller_and_repo(request, conn)
        await interest.unlike(conn, principal.require_user(), repo)
    return {}


@router.get("/api/users/{user}/likes")
async def likes(request: Request, user: str) -> list[dict[str, Any]]:
    """The public repositories that a user likes, the newest like first."""
    async with hub_of(request).db.read() as conn:
        account = await accounts.find_account(conn, user, kind="user")
        rows = await interest.liked_by(conn, account["id"])
    return [{"createdAt": iso(row["created"]), "repo": {"name": row["full_name"], "type": "model"}} for row in rows]


@router.get(API + "/auth-check")
async def auth_check(request: Request) -> dict[str, Any]:
    """Whether the caller may see a repository."""
    async with hub_of(request).db.read() as conn:
        await caller_and_repo(request, conn)
    return {}
