"""Discussions and pull requests."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from ..changes import pulls
from ..errors import BadRequest
from ..http import flag, hub_of, iso, json_body, whole
from ..repos import discussions
from ..repos.repos import Repo
from ..rights import Guarded
from .shared import API, caller_and_repo

router = APIRouter(include_in_schema=False, route_class=Guarded)

_ONE = API + "/discussions/{number:int}"
_PAGE = 50


@router.get(API + "/discussions")
async def listing(request: Request) -> dict[str, Any]:
    """A page of discussions, the newest first."""
    start = whole(request.query_params, "p", 0, most=10**6) * _PAGE
    async with hub_of(request).db.read() as conn:
        _, repo = await caller_and_repo(request, conn)
        rows, count = await discussions.page(conn, repo, limit=_PAGE, offset=start)
    return {"discussions": [_shown(repo, row) for row in rows], "count": count, "start": start}


@router.post(API + "/discussions")
async def create(request: Request) -> dict[str, Any]:
    """Begins a discussion or a pull request."""
    hub, body = hub_of(request), await json_body(request)
    title, description = body.get("title") or "", body.get("description") or ""
    if not isinstance(title, str) or not isinstance(description, str):
        raise BadRequest("'title' and 'description' must be texts.")
    is_pull = body.get("pullRequest") is True
    begin = pulls.open_pull if is_pull else discussions.begin
    async with hub.db.write() as conn:
        principal, repo = await caller_and_repo(request, conn)
        number = await begin(conn, repo, principal, title, description)
    return {"num": number, "pullRequest": is_pull, "url": hub.url(f"{repo.full_name}/discussions/{number}")}


@router.get(_ONE)
async def details(request: Request, number: int) -> dict[str, Any]:
    """A discussion, with what was said, and for a pull request what it changes."""
    async with hub_of(request).db.read() as conn:
        _, repo = await caller_and_repo(request, conn)
        return await _details(request, conn, repo, number)


async def _details(request: Request, conn: AsyncConnection, repo: Repo, number: int) -> dict[str, Any]:
    row = await discussions.find(conn, repo, number)
    shown = _shown(repo, row)
    shown["events"] = [_event(event) for event in await discussions.comments(conn, repo, number)]
    shown["filesWithConflicts"] = []
    if row["is_pull"]:
        compared = await pulls.compare(conn, repo, number)
        shown["filesWithConflicts"] = list(compared.conflicts)
        shown["changes"] = {"base": row["base"], **({"mergeCommitId": row["merged"]} if row["merged"] else {})}
        if flag(request.query_params.get("diff")):
            signs = {(True, False): "A", (False, True): "D", (False, False): "M"}
            lines = [f"{signs[c.before is None, c.after is None]}\t{c.path}" for c in compared.changes]
            shown["diff"] = "\n".join(lines)
    return shown


def _shown(repo: Repo, row: sa.RowMapping) -> dict[str, Any]:
    return {
        "num": row["num"],
        "title": row["title"],
        "status": row["status"],
        "author": {"name": row["author"]},
        "isPullRequest": row["is_pull"],
        "createdAt": iso(row["created"]),
        "repo": {"name": repo.full_name, "type": "model"},
        "repoOwner": {"name": repo.namespace, "isParticipating": False, "isDiscussionAuthor": False},
        "pinned": False,
    }


def _event(row: sa.RowMapping) -> dict[str, Any]:
    kind = {"comment": "comment", "status": "status-change"}.get(row["kind"], row["kind"])
    shown = {"id": str(row["id"]), "type": kind, "createdAt": iso(row["created"]), "author": {"name": row["author"]}}
    if kind == "comment":
        latest = {"raw": row["body"], "html": "", "updatedAt": iso(row["created"]), "author": {"name": row["author"]}}
        return {**shown, "data": {"latest": latest, "edited": False, "hidden": False, "numEdits": 0}}
    return {**shown, "data": {"status": row["body"].split()[0]}}


@router.post(_ONE + "/comment")
async def comment(request: Request, number: int) -> dict[str, Any]:
    """Says something."""
    text = (await json_body(request)).get("comment")
    if not isinstance(text, str):
        raise BadRequest("The body needs the 'comment', a text.")
    async with hub_of(request).db.write() as conn:
        principal, repo = await caller_and_repo(request, conn)
        await discussions.comment(conn, repo, number, principal, text)
        events = await discussions.comments(conn, repo, number)
    return {"newMessage": _event(events[-1])}


@router.post(_ONE + "/status")
async def status(request: Request, number: int) -> dict[str, Any]:
    """Opens or closes a discussion."""
    body = await json_body(request)
    async with hub_of(request).db.write() as conn:
        principal, repo = await caller_and_repo(request, conn)
        await discussions.set_status(conn, repo, number, principal, str(body.get("status")))
        if isinstance(body.get("comment"), str) and body["comment"].strip():
            await discussions.comment(conn, repo, number, principal, body["comment"])
        events = await discussions.comments(conn, repo, number)
    return {"newStatus": _event(events[-1])}


@router.post(_ONE + "/merge")
async def merge(request: Request, number: int) -> dict[str, Any]:
    """Merges a pull request, if its checks pass."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        principal, repo = await caller_and_repo(request, conn, write=True)
    made = await pulls.merge(hub, principal, repo, number)
    return {"success": True, "commitOid": made.oid}
