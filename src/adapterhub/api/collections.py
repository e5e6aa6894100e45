"""Collections: named lists of adapters."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request

from .. import collections
from ..http import hub_of
from ..web import snippets
from .models import Collection, Listed, NewCollection
from .shared import Caller, Choice, Name, User, part

__all__ = ["router"]

router = part("collections")


@router.get("/collections", response_model=list[Listed])
async def listing(request: Request, namespace: Choice = None, limit: Annotated[int, Query(ge=1, le=500)] = 100) -> Any:
    """Collections, of all or of one namespace, those that changed last first."""
    async with hub_of(request).db.read() as conn:
        return await collections.listed(conn, namespace, limit)


@router.get("/collections/{namespace}/{name}", response_model=Collection)
async def one(request: Request, caller: Caller, namespace: Name, name: Name) -> Any:
    """A collection with those of its adapters that the caller may see, and code that loads them."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        found = await collections.find(conn, caller, namespace, name)
    code = snippets.together(found.rows, found.setup, endpoint=hub.settings.public_url)
    rest = {key: getattr(found, key) for key in ("namespace", "name", "title", "note", "setup")}
    return {**rest, "adapters": found.rows, "code": code}


@router.put("/collections/{namespace}/{name}", status_code=204)
async def put(request: Request, caller: User, namespace: Name, name: Name, body: NewCollection) -> None:
    """Makes a collection, or replaces all of one."""
    async with hub_of(request).db.write() as conn:
        await collections.put(conn, caller, namespace, name, **body.model_dump())


@router.delete("/collections/{namespace}/{name}", status_code=204)
async def delete(request: Request, caller: User, namespace: Name, name: Name) -> None:
    """Deletes a collection; its adapters stay."""
    async with hub_of(request).db.write() as conn:
        await collections.delete(conn, caller, namespace, name)
