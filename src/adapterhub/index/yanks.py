"""Taking adapters out of lists and names, without breaking what depends on them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import accounts
from ..accounts import Principal
from ..db import schema
from ..repos import refs
from ..repos.repos import Repo
from . import store

__all__ = ["set_yank"]


async def set_yank(
    conn: AsyncConnection, caller: Principal, repo: Repo, revision: str | None, reason: str | None
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
    await store.refresh_visible(conn, repo.id)
    action = "unyank" if reason is None else "yank"
    await accounts.log(conn, caller, action, repo.full_name, revision=revision, reason=reason)
