"""Repositories at a revision: what most requests begin with, found in one step."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from ..accounts import Principal
from ..db import schema
from ..db.engine import Database
from ..db.lookup import Lookup
from . import commits, refs, repos
from .commits import Commit
from .repos import Repo

__all__ = ["find"]


async def find(db: Database, principal: Principal, full_name: str, revision: str | None) -> tuple[Repo, Commit]:
    """The repository of a name, if the caller may see it, and its commit at a revision, or at its default branch.

    Raises:
        RepoNotFound: as for `repos.find`.
        RevisionNotFound, Conflict: as for `refs.oid_of`.
    """
    for row in await db.look_up(_USUAL, key=full_name.lower(), revision=revision):
        repo, commit = Repo(*row[:_WIDTH]), Commit(*row[_WIDTH:])
        if not repo.private or principal.may_read(repo.namespace, repo.full_name):
            return repo, commit
    # Not so plainly: by a former name, at a pull request or by some digits. Else this tells what is wrong.
    async with db.read() as conn:
        repo = await repos.find(conn, principal, full_name)
        return repo, await commits.resolve(conn, repo, repo.default_branch if revision is None else revision)


def _ref(name: sa.ColumnElement[str]) -> sa.ScalarSelect[str]:
    same = (schema.ref.c.repo_id == schema.repo.c.id, schema.ref.c.name == name)
    return sa.select(schema.ref.c.oid).where(*same).scalar_subquery()


def _usual() -> sa.Select[Any]:
    """The repository that has a name now, at the branch, the tag or the commit of the full id that is given."""
    given = sa.bindparam("revision", type_=sa.String)
    name = sa.func.coalesce(given, schema.repo.c.default_branch)
    oid = sa.func.coalesce(_ref(refs.HEADS + name), _ref(refs.TAGS + name), given)
    return (
        sa.select(*repos.COLUMNS, *commits.COLUMNS)
        .select_from(schema.repo)
        .join(schema.commit, sa.and_(schema.commit.c.repo_id == schema.repo.c.id, schema.commit.c.oid == oid))
        .where(schema.repo.c.key == sa.bindparam("key", type_=sa.String))
    )


_USUAL = Lookup(_usual())
_WIDTH = len(repos.COLUMNS)
