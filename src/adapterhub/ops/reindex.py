"""The index, derived anew from all files: it holds nothing that they do not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from ..db import schema
from ..errors import RepoNotFound
from ..index import store
from ..index.examine import examine
from ..index.record import Record
from ..repos import commits, refs, repos
from ..repos.commits import Commit
from ..repos.files import RepoFiles
from ..repos.repos import Repo

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["derived", "reindex"]


async def reindex(hub: Hub) -> int:
    """Derives every repository's record from the head of its default branch; returns their number.

    A repository that changes meanwhile is left to the commit that changes it.
    """
    async with hub.db.read() as conn:
        ids = (await conn.execute(sa.select(schema.repo.c.id).order_by(schema.repo.c.id))).scalars().all()
    return sum([await _reindex_one(hub, repo_id) for repo_id in ids])


async def _reindex_one(hub: Hub, repo_id: int) -> bool:
    try:
        repo, head, record = await derived(hub, repo_id)
        async with hub.db.write() as conn:
            if await refs.oid_of(conn, repo, repo.default_branch) == head.oid:
                await store.put(conn, repo, head, record)
    except RepoNotFound:
        return False
    return True


async def derived(hub: Hub, repo_id: int) -> tuple[Repo, Commit, Record]:
    """A repository, the head of its default branch, and what its files say now.

    Raises:
        RepoNotFound: it was deleted.
        RevisionNotFound: it has no default branch.
    """
    async with hub.db.read() as conn:
        repo = await repos.by_id(conn, repo_id)
        head = await commits.resolve(conn, repo, refs.HEADS + repo.default_branch)
        manifest = await commits.manifest_of(conn, head.tree)
    return repo, head, await examine(hub, repo, RepoFiles(hub, manifest))
