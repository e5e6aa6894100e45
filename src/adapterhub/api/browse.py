"""Finding adapters: the tree of tasks and languages."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request

from ..http import hub_of
from ..index import search

__all__ = ["router"]

router = APIRouter(tags=["adapters"])


@router.get("/tree")
async def tree(request: Request) -> dict[str, dict[str, dict[str, int]]]:
    """How many public adapters stand at each place: type → task → subtask → count."""
    async with hub_of(request).db.read() as conn:
        return await search.tree(conn)
