"""Commits: those of a repository, their trees and their order. `changes/committing.py` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..db import schema
from ..db.engine import Database
from ..db.lookup import Lookup
from . import refs
from .files import Entry, Manifest
from .repos import Repo

__all__ = [
    "COLUMNS",
    "MAX_FILES",
    "Commit",
    "chain_of",
    "depth",
    "find",
    "history",
    "manifest_at",
    "manifest_of",
    "resolve",
]

MAX_FILES = 20_000  # of a repository


@dataclass(frozen=True)
class Commit:
    """A commit, as a row of the table `commit` tells."""

    oid: str
    parent: str | None
    tree: str
    author: str
    title: str
    message: str
    date: datetime


COLUMNS = [schema.commit.c[name] for name in ("oid", "parent", "tree", "author", "title", "message", "date")]


async def find(conn: AsyncConnection, repo: Repo, oid: str) -> Commit:
    """The commit of an id that this repository has."""
    known = _commits.get(oid)
    if known is None:
        query = sa.select(*COLUMNS).where(schema.commit.c.repo_id == repo.id, schema.commit.c.oid == oid)
        known = Commit(*(await conn.execute(query)).one())
        if len(_commits) >= _MAX_COMMITS:
            _commits.clear()
        _commits[oid] = known
    return known


# Commits that were read lately. An id stands for one commit only, in whatever repository.
_commits: dict[str, Commit] = {}
_MAX_COMMITS = 5000


async def resolve(conn: AsyncConnection, repo: Repo, revision: str) -> Commit:
    """The commit that a revision names.

    Raises:
        RevisionNotFound, Conflict: as for `refs.oid_of`.
    """
    return await find(conn, repo, await refs.oid_of(conn, repo, revision))


async def manifest_of(conn: AsyncConnection, tree: str) -> Manifest:
    """The files of a tree, sorted by path. It is shared, so it must not be changed."""
    return _recall(tree) or _keep(tree, (await conn.execute(_TREE.statement, {"oid": tree})).scalar_one())


async def manifest_at(db: Database, tree: str) -> Manifest:
    """As `manifest_of`, without a connection at hand."""
    known = _recall(tree)
    if known is None:
        ((stored,),) = await db.look_up(_TREE, oid=tree)
        known = _keep(tree, stored)
    return known


def _recall(tree: str) -> Manifest | None:
    known = _manifests.pop(tree, None)
    if known is not None:
        _manifests[tree] = known
    return known


def _keep(tree: str, stored: Mapping[str, Any]) -> Manifest:
    known = {path: Entry(path, sha, oid, size, bool(lfs)) for path, (sha, oid, size, lfs) in sorted(stored.items())}
    while len(_manifests) >= _MAX_TREES or sum(map(len, _manifests.values())) > MAX_FILES:
        del _manifests[next(iter(_manifests))]
    _manifests[tree] = known
    return known


_TREE = Lookup(sa.select(schema.tree.c.manifest).where(schema.tree.c.oid == sa.bindparam("oid")))
# Trees that were read lately, the latest last: an id stands for one tree only, and clients ask file by file.
_manifests: dict[str, Manifest] = {}
_MAX_TREES = 200


async def history(conn: AsyncConnection, repo: Repo, oid: str, limit: int = 50, offset: int = 0) -> list[Commit]:
    """A commit and those before it, the newest first."""
    chain = chain_of(repo, oid)
    query = sa.select(*(chain.c[column.name] for column in COLUMNS)).order_by(chain.c.depth)
    return [Commit(*row) for row in (await conn.execute(query.limit(limit).offset(offset))).all()]


async def depth(conn: AsyncConnection, repo: Repo, oid: str) -> int:
    """How many commits `history` has."""
    return int((await conn.execute(sa.select(sa.func.count()).select_from(chain_of(repo, oid)))).scalar_one())


def chain_of(repo: Repo, oid: str) -> sa.CTE:
    """A commit and those before it, as a table with their depth."""
    first = sa.select(*COLUMNS, sa.literal(0).label("depth")).where(
        schema.commit.c.repo_id == repo.id, schema.commit.c.oid == oid
    )
    chain = first.cte("chain", recursive=True)
    older = sa.select(*COLUMNS, chain.c.depth + 1).join(
        chain, sa.and_(schema.commit.c.repo_id == repo.id, schema.commit.c.oid == chain.c.parent)
    )
    return chain.union_all(older)
