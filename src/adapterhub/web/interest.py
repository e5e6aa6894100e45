"""Likes, and what somebody watches."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .. import interest
from ..http import hub_of, principal_of
from ..index import search
from ..index.search import Query
from ..repos import repos
from ..rights import Page
from .formats import path
from .pages import form_of, page, redirect

router = APIRouter(include_in_schema=False, route_class=Page)


@router.post("/{namespace}/{name}/like")
async def like(request: Request, namespace: str, name: str) -> Response:
    """Likes an adapter, or takes that back."""
    form, me = await form_of(request), await principal_of(request)
    async with hub_of(request).db.write() as conn:
        repo = await repos.find(conn, me, f"{namespace}/{name}")
        change = interest.unlike if form.get("action") == "unlike" else interest.like
        await change(conn, me.require_user(), repo)
    return redirect(f"/{path(repo.full_name)}")


@router.get("/watching")
async def watching(request: Request) -> Response:
    """What is new among what somebody watches."""
    hub, me = hub_of(request), await principal_of(request)
    async with hub.db.read() as conn:
        watched = await interest.watched_by(conn, me.require_user())
        asked = Query(watched=tuple(watched), sort="updated", cursor=request.query_params.get("cursor"))
        found = await search.query(conn, asked, me, facets=False, counts=hub.counts) if watched else None
    return await page(request, "watching.html", watched=watched, found=found)


@router.post("/watching")
async def watch(request: Request) -> Response:
    """Watches a task, a language, a user or an organisation, or stops that."""
    form, me = await form_of(request), await principal_of(request)
    kind, target = str(form.get("kind", "")), str(form.get("target", ""))
    async with hub_of(request).db.write() as conn:
        change = interest.unwatch if form.get("action") == "unwatch" else interest.watch
        await change(conn, me.require_user(), kind, target)
    return redirect("/watching")
