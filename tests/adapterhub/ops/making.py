"""Repositories, uploads and commits for tests, made without HTTP."""

import hashlib

from adapterhub import accounts
from adapterhub.changes import committing, manage
from adapterhub.changes.committing import Put, Remove
from adapterhub.db import schema
from adapterhub.ingest import ingest


async def member(hub, name="alice"):
    async with hub.db.read() as conn:
        return await accounts.principal(hub.db, (await accounts.find_account(conn, name))["id"])


async def new_repo(hub, full_name="acme/one", *, owner="alice"):
    return await manage.create(hub, await member(hub, owner), full_name)


async def pieces(data):
    yield data


async def upload(hub, repo, data):
    return (await ingest(hub, pieces(data), repo_id=repo.id, expect_size=len(data))).sha256


async def put(hub, repo, path, data, *, lfs=True, revision="main"):
    operation = Put(path, await upload(hub, repo, data), lfs)
    made = await committing.commit(hub, await member(hub), repo, revision, [operation], title=f"Add {path}")
    return made.oid


async def remove(hub, repo, path):
    return (await committing.commit(hub, await member(hub), repo, "main", [Remove(path)], title=f"Remove {path}")).oid


async def stored(hub):
    return {name async for name in hub.blobs.names()}


async def rows(hub, table, *columns):
    import sqlalchemy as sa

    async with hub.db.read() as conn:
        return (await conn.execute(sa.select(*(columns or [table])))).all()


async def age(hub, **delta):
    """Makes everything look as if it was named last so long ago."""
    from datetime import timedelta

    import sqlalchemy as sa

    async with hub.db.write() as conn:
        await conn.execute(sa.update(schema.blob).values(last_ref=schema.now() - timedelta(**delta)))


def sha256(data):
    return hashlib.sha256(data).hexdigest()
