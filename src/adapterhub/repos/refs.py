"""Branches, tags and the heads of pull requests."""

from __future__ import annotations

import re
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import names
from ..db import schema
from ..errors import BadRequest, Conflict, Forbidden, RevisionNotFound
from .repos import Repo

__all__ = ["HEADS", "PULLS", "TAGS", "create", "delete", "head_of", "listing", "oid_of"]

HEADS, TAGS, PULLS = "refs/heads/", "refs/tags/", "refs/pr/"


async def oid_of(conn: AsyncConnection, repo: Repo, revision: str) -> str:
    """The commit that a branch, a tag, a full ref, or a commit's id or its first seven or more digits names.

    Raises:
        RevisionNotFound: nothing of that name is here.
        Conflict: several commits begin with these digits.
    """
    candidates = [HEADS + revision, TAGS + revision, revision] if not revision.startswith("refs/") else [revision]
    query = sa.select(schema.ref.c.name, schema.ref.c.oid).where(
        schema.ref.c.repo_id == repo.id, schema.ref.c.name.in_(candidates)
    )
    found = dict((await conn.execute(query)).all())
    for name in candidates:
        if name in found:
            return str(found[name])
    if re.fullmatch(r"[0-9a-f]{7,40}", revision):
        query = sa.select(schema.commit.c.oid).where(
            schema.commit.c.repo_id == repo.id,
            schema.commit.c.oid >= revision,
            schema.commit.c.oid < revision + "g",  # sorts after every digit
        )
        oids = (await conn.execute(query.limit(2))).scalars().all()
        if len(oids) > 1:
            raise Conflict(f"Several commits begin with {revision!r}. Give more digits.")
        if oids:
            return str(oids[0])
    raise RevisionNotFound(f"Invalid rev id: {repo.full_name} has no branch, tag or commit {revision!r}")


def head_of(revision: str) -> str:
    """The full name of the ref that a commit to `revision` moves: a branch or a pull request.

    Raises:
        BadRequest: it is a tag, or no ref's name.
    """
    if re.fullmatch(r"refs/pr/[1-9][0-9]*", revision):
        return revision
    if revision.startswith("refs/") and not revision.startswith(HEADS):
        raise BadRequest(f"{revision!r} cannot be committed to: only branches and pull requests can.")
    return HEADS + names.check_ref(revision.removeprefix(HEADS))


async def listing(conn: AsyncConnection, repo: Repo, prefix: str) -> Sequence[sa.RowMapping]:
    """Rows of the refs whose full names begin with `prefix`; the default branch first, then by name."""
    query = sa.select(schema.ref).where(
        schema.ref.c.repo_id == repo.id, schema.ref.c.name.startswith(prefix, autoescape=True)
    )
    rows = (await conn.execute(query.order_by(schema.ref.c.name))).mappings().all()
    return sorted(rows, key=lambda row: row["name"] != HEADS + repo.default_branch)


async def create(conn: AsyncConnection, repo: Repo, kind: str, name: str, at: str, message: str = "") -> str:
    """Makes a branch (`kind` is `HEADS`) or a tag (`TAGS`) at a revision; returns its commit.

    Raises:
        BadRequest: git would not take the name.
        RevisionNotFound: `at` names nothing.
        Conflict: it exists.
    """
    full = kind + names.check_ref(name)
    oid = await oid_of(conn, repo, at)
    mine = sa.select(schema.ref.c.name).where(schema.ref.c.repo_id == repo.id)
    if (await conn.execute(mine.where(schema.ref.c.name == full))).scalar() is not None:
        raise Conflict(f"Reference already exists: {full}")
    await conn.execute(sa.insert(schema.ref).values(repo_id=repo.id, name=full, oid=oid, message=message))
    return oid


async def delete(conn: AsyncConnection, repo: Repo, kind: str, name: str) -> None:
    """Removes a branch or a tag; its commits stay.

    Raises:
        RevisionNotFound: there is none of that name.
        Forbidden: it is the default branch.
    """
    if kind == HEADS and name == repo.default_branch:
        raise Forbidden(f"{name!r} is the default branch of {repo.full_name} and cannot be deleted.")
    mine = (schema.ref.c.repo_id == repo.id, schema.ref.c.name == kind + name)
    if not (await conn.execute(sa.delete(schema.ref).where(*mine))).rowcount:
        raise RevisionNotFound(f"Invalid rev id: {repo.full_name} has no {kind + name!r}")
