"""Repositories, found by name: who may see them, and who may change them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..accounts import Principal
from ..db import schema
from ..errors import Forbidden, RepoNotFound, Unauthorized

if TYPE_CHECKING:
    pass

__all__ = ["Repo", "by_id", "by_uid", "find", "payer_of", "refuse"]


@dataclass(frozen=True)
class Repo:
    """A repository, as a row of the table `repo` tells.

    Attributes:
        id: by which tables name it; no later repository of this database gets the same.
        uid: by which signatures name it: no other repository ever has the same, not even after a restored backup.
    """

    id: int
    uid: str
    owner_id: int
    namespace: str
    name: str
    private: bool
    default_branch: str
    bytes: int
    downloads: int
    downloads_all: int
    likes: int
    trending: int
    yanked: str | None
    created: datetime
    updated: datetime

    @property
    def full_name(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


COLUMNS = [schema.repo.c[field.name] for field in fields(Repo)]


async def by_id(conn: AsyncConnection, repo_id: int) -> Repo:
    """The repository of an id.

    Raises:
        RepoNotFound: it was deleted.
    """
    return await _only(conn, schema.repo.c.id == repo_id)


async def by_uid(conn: AsyncConnection, uid: str) -> Repo:
    """The repository of a `uid`.

    Raises:
        RepoNotFound: it was deleted.
    """
    return await _only(conn, schema.repo.c.uid == uid)


async def _only(conn: AsyncConnection, condition: sa.ColumnElement[bool]) -> Repo:
    row = (await conn.execute(sa.select(*COLUMNS).where(condition))).one_or_none()
    if row is None:
        raise RepoNotFound(anonymous=False)
    return Repo(*row)


async def find(
    conn: AsyncConnection, principal: Principal, full_name: str, *, write: bool = False, admin: bool = False
) -> Repo:
    """The repository of a name, present or former, if the caller may see it.

    A private repository is, for those who may not read it, like one that does not exist.

    Args:
        write: the caller wants to change it.
        admin: the caller wants to delete, move or hide it.

    Raises:
        RepoNotFound: there is none that they may see.
        Unauthorized: it is public, but a visitor wants to change it.
        Forbidden: they may see it, but not change it.
    """
    key = full_name.lower()
    row = (await conn.execute(sa.select(*COLUMNS).where(schema.repo.c.key == key))).one_or_none()
    if row is None:
        moved = sa.select(schema.redirect.c.repo_id).where(schema.redirect.c.key == key).scalar_subquery()
        row = (await conn.execute(sa.select(*COLUMNS).where(schema.repo.c.id == moved))).one_or_none()
    if row is None:
        raise RepoNotFound(anonymous=principal.is_anonymous)
    repo = Repo(*row)
    if repo.private and not principal.may_read(repo.namespace, repo.full_name):
        raise RepoNotFound(anonymous=principal.is_anonymous)
    if admin and not principal.may_admin(repo.namespace):
        refuse(principal, f"You don't have the rights to delete, move or hide {repo.full_name}")
    if write and not principal.may_write(repo.namespace, repo.full_name):
        refuse(principal, f"You don't have write access to {repo.full_name}")
    return repo


def payer_of(principal: Principal, repo: Repo) -> int | None:
    """The account that pays for what a caller uploads to a repository; None: its owner.

    Raises:
        Unauthorized: nobody is logged in.
    """
    return None if principal.may_write(repo.namespace, repo.full_name) else principal.require_user()


def refuse(principal: Principal, message: str) -> None:
    """Says that the caller may not do something to what they may see.

    Raises:
        Unauthorized: nobody is logged in.
        Forbidden: they, or their token, may not.
    """
    if principal.is_anonymous:
        raise Unauthorized(f"{message}: nobody is logged in. Log in or send a token with role 'write'.")
    raise Forbidden(f"{message}. Use a token with role 'write' of a member who may, or ask them.")
