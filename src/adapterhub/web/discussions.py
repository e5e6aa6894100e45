"""Discussions and pull requests: read, write, merge."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from ..changes import pulls
from ..content.render import render
from ..http import hub_of, principal_of, whole
from ..repos import discussions, repos
from ..repos.repos import Repo
from ..rights import Page
from .pages import form_of, page, redirect
from .repo import diffs, opened

router = APIRouter(include_in_schema=False, route_class=Page)

_ALL = "/{namespace}/{name}/discussions"
_ONE = _ALL + "/{number:int}"
_PAGE = 50


@router.get(_ALL)
async def listing(request: Request) -> Response:
    """All discussions and pull requests, the newest first."""
    number = whole(request.query_params, "p", 0, most=10**6)
    async with hub_of(request).db.read() as conn:
        shown = await opened(request, conn, "discussions")
        rows, count = await discussions.page(conn, shown["repo"], limit=_PAGE, offset=number * _PAGE)
    following = number + 1 if (number + 1) * _PAGE < count else None
    return await page(request, "repo/discussions.html", **shown, rows=rows, count=count, following=following)


@router.get(_ALL + "/new")
async def new(request: Request) -> Response:
    """The form for a discussion."""
    async with hub_of(request).db.read() as conn:
        shown = await opened(request, conn, "discussions")
    return await page(request, "repo/new_discussion.html", **shown)


@router.post(_ALL)
async def create(request: Request) -> Response:
    """Begins a discussion."""
    form, me = await form_of(request), await principal_of(request)
    title, body = (str(form.get(name, "")) for name in ("title", "body"))
    async with hub_of(request).db.write() as conn:
        repo = await _repo(request, conn)
        number = await discussions.begin(conn, repo, me, title, body)
    return redirect(_url(repo, number))


@router.get(_ONE)
async def one(request: Request, number: int) -> Response:
    """A discussion; of a pull request also what it changes and what the checks say."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        shown = await opened(request, conn, "discussions")
        repo: Repo = shown["repo"]
        row = await discussions.find(conn, repo, number)
        events = await discussions.comments(conn, repo, number)
        compared = await pulls.compare(conn, repo, number) if row["is_pull"] else None
    me = await principal_of(request)
    changes = [(c.path, c.before, c.after) for c in compared.changes] if compared else []
    failing = [check for check in compared.checks if check["level"] == "error"] if compared else []
    blocked = bool(failing) and hub.settings.enforce_checks == "errors"
    return await page(
        request,
        "repo/discussion.html",
        **shown,
        discussion=row,
        events=[await _event(repo, event) for event in events],
        compared=compared,
        changes=await diffs(request, changes) if row["status"] != "merged" else [],
        blocked=blocked,
        may_close=not me.is_anonymous and (row["author"] == me.name or shown["may_write"]),
    )


async def _event(repo: Repo, event: Any) -> dict[str, Any]:
    html = Markup("")
    if event["kind"] == "comment":
        html = Markup(await asyncio.to_thread(render, event["body"], repo=repo.full_name))
    return {**event, "html": html}


@router.post(_ONE)
async def answer(request: Request, number: int) -> Response:
    """A comment, or one of the buttons: close, open again, merge."""
    form, me, hub = await form_of(request), await principal_of(request), hub_of(request)
    action, body = str(form.get("action", "comment")), str(form.get("body", ""))
    async with hub.db.write() as conn:
        repo = await _repo(request, conn)
        if body.strip() or action == "comment":
            await discussions.comment(conn, repo, number, me, body)
        if action in ("open", "closed"):
            await discussions.set_status(conn, repo, number, me, action)
    if action == "merge":
        async with hub.db.read() as conn:
            repo = await repos.find(conn, me, repo.full_name, write=True)
        await pulls.merge(hub, me, repo, number)
    return redirect(_url(repo, number))


async def _repo(request: Request, conn: Any) -> Repo:
    params = request.path_params
    return await repos.find(conn, await principal_of(request), f"{params['namespace']}/{params['name']}")


def _url(repo: Repo, number: int) -> str:
    return f"/{repo.full_name}/discussions/{number}"
