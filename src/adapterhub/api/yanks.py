"""Taking adapters out of lists and names, without breaking what depends on them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from .. import accounts
from ..db import schema
from ..http import hub_of
from ..repos import refs, repos
from ..repos.repos import Repo
from .models import Yank
from .shared import FullName, Revision, User, part

__all__ = ["router", "set_yank"]

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


async def set_yank(
    conn: AsyncConnection, caller: accounts.Principal, repo: Repo, revision: str | None, reason: str | None
) -> None:
    """Yanks a repository, or one of its revisions, or with `reason=None` takes that back.

    Raises:
        RevisionNotFound: there is no such revision.
    """
    if revision is None:
        await conn.execute(sa.update(schema.repo).where(schema.repo.c.id == repo.id).values(yanked=reason))
    else:
        oid = await refs.oid_of(conn, repo, revision)
        same = (schema.yank.c.repo_id == repo.id, schema.yank.c.oid == oid)
        await conn.execute(sa.delete(schema.yank).where(*same))
        if reason is not None:
            row = {"repo_id": repo.id, "oid": oid, "reason": reason, "actor": caller.name}
            await conn.execute(sa.insert(schema.yank).values(**row))
    await _show_or_hide(conn, repo)
    action = "unyank" if reason is None else "yank"
    await accounts.log(conn, caller, action, repo.full_name, revision=revision, reason=reason)


async def _show_or_hide(conn: AsyncConnection, repo: Repo) -> None:
    """Sets what the index copies: whether the adapter is public, and neither it nor its newest commit is yanked."""
    adapter = schema.adapter.c
    public = sa.exists().where(
        schema.repo.c.id == repo.id, sa.not_(schema.repo.c.private), schema.repo.c.yanked.is_(None)
    )
    newest = sa.exists().where(schema.yank.c.repo_id == adapter.repo_id, schema.yank.c.oid == adapter.oid)
    visible = sa.and_(public, ~newest)
    await conn.execute(sa.update(schema.adapter).where(adapter.repo_id == repo.id).values(visible=visible))
