"""Repositories are created, moved, hidden and deleted."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import accounts, names
from ..accounts import Principal
from ..db import schema
from ..db.engine import insert
from ..db.schema import now
from ..errors import Conflict, Forbidden, NotFound
from ..index import store
from ..repos.repos import Repo, by_id, find, refuse
from .committing import create_first, keep_first

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["create", "delete", "move", "set_private"]

# For so long nobody but its owner may take the name of a deleted repository.
_TOMBSTONE_DAYS = 30


async def create(hub: Hub, principal: Principal, full_name: str, *, private: bool = False) -> Repo:
    """A new repository with a first commit, which holds `.gitattributes`.

    Raises:
        BadRequest: the name is not allowed.
        Unauthorized, Forbidden: the caller may not create in this namespace.
        Conflict: the name is taken; `details` has its `url`.
    """
    namespace, name = names.split(full_name)
    if not principal.may_write(namespace, full_name):
        refuse(principal, f"You don't have the rights to create a model under the namespace {namespace!r}")
    try:
        return await _create(hub, principal, namespace, name, private=private)
    except sa.exc.IntegrityError:  # on PostgreSQL, where somebody made it since it was found to be free: now it is not
        return await _create(hub, principal, namespace, name, private=private)


async def _create(hub: Hub, principal: Principal, namespace: str, name: str, *, private: bool) -> Repo:
    async with hub.db.read() as conn:
        await _check_unknown(hub, conn, f"{namespace}/{name}")
    first = await keep_first(hub)
    async with hub.db.write() as conn:
        owner = await accounts.find_account(conn, namespace)
        full_name = f"{owner['name']}/{name}"
        await _check_free(hub, conn, full_name, owner["id"], principal)
        values = {"uid": secrets.token_hex(12), "owner_id": owner["id"], "namespace": owner["name"], "name": name}
        values["name_key"] = names.key(name)
        repo_id = await insert(conn, schema.repo, **values, key=full_name.lower(), private=private)
        repo = await by_id(conn, repo_id)
        await conn.execute(sa.delete(schema.redirect).where(schema.redirect.c.key == full_name.lower()))
        await accounts.log(conn, principal, "repo.create", full_name, private=private)
        await create_first(hub, conn, repo, principal, first)
        return await by_id(conn, repo_id)


async def _check_unknown(hub: Hub, conn: AsyncConnection, full_name: str) -> None:
    query = sa.select(schema.repo.c.namespace, schema.repo.c.name).where(schema.repo.c.key == full_name.lower())
    taken = (await conn.execute(query)).one_or_none()
    if taken is not None:
        url = hub.url("/".join(taken))
        raise Conflict(f"{'/'.join(taken)} exists already: {url}", details={"url": url})


async def _check_free(hub: Hub, conn: AsyncConnection, full_name: str, owner_id: int, principal: Principal) -> None:
    key = full_name.lower()
    await _check_unknown(hub, conn, full_name)
    buried = (await conn.execute(sa.select(schema.tombstone).where(schema.tombstone.c.key == key))).mappings().first()
    if buried and buried["until"] > now() and buried["owner_id"] != owner_id and not principal.is_admin:
        raise Conflict(f"{full_name} was deleted lately; its name is free again on {buried['until']:%Y-%m-%d}.")
    await conn.execute(sa.delete(schema.tombstone).where(schema.tombstone.c.key == key))


async def delete(hub: Hub, principal: Principal, full_name: str) -> None:
    """Deletes a repository; its bytes go with the next garbage collection, its name stays blocked for 30 days.

    Raises:
        RepoNotFound, Unauthorized, Forbidden: as for `find`.
    """
    async with hub.db.write() as conn:
        repo = await find(conn, principal, full_name, admin=True)
        await store.remove(conn, repo.id)
        await conn.execute(sa.delete(schema.repo).where(schema.repo.c.id == repo.id))
        key = repo.full_name.lower()
        await conn.execute(sa.delete(schema.tombstone).where(schema.tombstone.c.key == key))
        until = now() + timedelta(days=_TOMBSTONE_DAYS)
        await conn.execute(sa.insert(schema.tombstone).values(key=key, owner_id=repo.owner_id, until=until))
        await accounts.log(conn, principal, "repo.delete", repo.full_name)


async def move(hub: Hub, principal: Principal, old: str, new: str) -> Repo:
    """Renames a repository, or gives it to another namespace; the old name leads to it from then on.

    Raises:
        RepoNotFound, Unauthorized, Forbidden, BadRequest, Conflict: as for `find` and `create`.
    """
    namespace, name = names.split(new)
    async with hub.db.write() as conn:
        repo = await find(conn, principal, old, admin=True)
        if not principal.may_write(namespace, new):
            refuse(principal, f"You don't have the rights to move a model to the namespace {namespace!r}")
        try:
            owner = await accounts.find_account(conn, namespace)
        except NotFound as error:
            raise Forbidden(error.message) from error
        full_name = f"{owner['name']}/{name}"
        old_key, new_key = repo.full_name.lower(), full_name.lower()
        if new_key != old_key:
            await _check_free(hub, conn, full_name, owner["id"], principal)
            await conn.execute(sa.delete(schema.redirect).where(schema.redirect.c.key.in_((old_key, new_key))))
            await conn.execute(sa.insert(schema.redirect).values(key=old_key, repo_id=repo.id))
        values = {"namespace": owner["name"], "name": name, "owner_id": owner["id"], "key": new_key}
        values["name_key"] = names.key(name)
        await conn.execute(sa.update(schema.repo).where(schema.repo.c.id == repo.id).values(**values))
        await store.rename(conn, repo.id, full_name)
        await accounts.log(conn, principal, "repo.move", repo.full_name, to=full_name)
        return await by_id(conn, repo.id)


async def set_private(hub: Hub, principal: Principal, full_name: str, private: bool) -> None:
    """Hides a repository from all but the members of its namespace, or shows it.

    Raises:
        RepoNotFound, Unauthorized, Forbidden: as for `find`.
    """
    async with hub.db.write() as conn:
        repo = await find(conn, principal, full_name, admin=True)
        await conn.execute(sa.update(schema.repo).where(schema.repo.c.id == repo.id).values(private=private))
        await store.refresh_visible(conn, repo.id)
        await accounts.log(conn, principal, "repo.settings", repo.full_name, private=private)
