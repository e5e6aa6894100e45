"""Pages of collections."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .. import collections
from ..collections import SETUPS, Collection
from ..http import hub_of, principal_of
from ..rights import Page
from . import snippets
from .formats import path
from .pages import form_of, page, redirect

router = APIRouter(include_in_schema=False, route_class=Page)


@router.get("/collections")
async def listing(request: Request) -> Response:
    """The collections that changed last."""
    async with hub_of(request).db.read() as conn:
        rows = await collections.listed(conn)
    return await page(request, "collections.html", rows=rows)


@router.get("/collections/new")
async def form(request: Request) -> Response:
    """The form for a new collection, or for one that is there."""
    me, edited = await principal_of(request), request.query_params.get("edit", "")
    shown = Collection(me.name, "", "", "", "", [])
    if edited:
        async with hub_of(request).db.read() as conn:
            shown = await collections.find(conn, me, *edited.partition("/")[::2])
    spaces = [name for name in me.namespaces if me.may_write(name, name)]
    return await page(request, "new_collection.html", shown=shown, edits=bool(edited), spaces=spaces, setups=SETUPS)


@router.post("/collections")
async def put(request: Request) -> Response:
    """Makes, replaces or deletes a collection."""
    given, me = await form_of(request), await principal_of(request)
    values = {key: str(given.get(key, "")).strip() for key in ("namespace", "name", "title", "note", "setup")}
    namespace, name = values.pop("namespace"), values.pop("name")
    async with hub_of(request).db.write() as conn:
        if given.get("action") == "delete":
            await collections.delete(conn, me, namespace, name)
            return redirect("/collections")
        await collections.put(conn, me, namespace, name, items=str(given.get("items", "")).split(), **values)
    return redirect(f"/collections/{path(namespace)}/{path(name)}")


@router.get("/collections/{namespace}/{name}")
async def one(request: Request, namespace: str, name: str) -> Response:
    """A collection with its adapters, and code that loads all of them."""
    me, hub = await principal_of(request), hub_of(request)
    async with hub.db.read() as conn:
        shown = await collections.find(conn, me, namespace, name)
    code = snippets.together(shown.rows, shown.setup, endpoint=hub.settings.public_url)
    may_write = me.may_write(shown.namespace, shown.namespace)
    return await page(request, "collection.html", shown=shown, code=code, may_write=may_write)
