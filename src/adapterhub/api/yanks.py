"""Yanking adapters and their revisions."""

from __future__ import annotations

from starlette.requests import Request

from ..http import hub_of
from ..index.yanks import set_yank
from ..repos import repos
from .models import Yank
from .shared import FullName, Revision, User, part

__all__ = ["router"]

router = part("adapters")


@router.post("/yank", status_code=204)
async def yank(request: Request, caller: User, body: Yank) -> None:
    """Takes an adapter, or one of its revisions, out of lists and names.

    Who names a commit still gets its files.
    """
    async with hub_of(request).db.write() as conn:
        repo = await repos.find(conn, caller, body.id, write=True)
        await set_yank(conn, caller, repo, body.revision, body.reason)


@router.delete("/yank", status_code=204)
async def unyank(request: Request, caller: User, id: FullName, revision: Revision = None) -> None:
    """Puts it back into lists and names."""
    async with hub_of(request).db.write() as conn:
        repo = await repos.find(conn, caller, id, write=True)
        await set_yank(conn, caller, repo, revision, None)
