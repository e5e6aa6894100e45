"""What is collected, and above all what is not."""

import asyncio
import os
import time
from datetime import timedelta

import pytest
import sqlalchemy as sa

from adapterhub.changes import committing, manage
from adapterhub.changes.committing import Put
from adapterhub.db import schema
from adapterhub.ops import gc
from adapterhub.repos import commits, refs
from tests.adapterhub.ops import making
from tests.adapterhub.ops.making import sha256

BACKENDS = pytest.mark.parametrize("hub", [{}, {"db": "postgres"}, {"blobs": "s3"}], indirect=True)


@BACKENDS
def test_what_commits_name_stays_and_what_nothing_names_goes_after_the_grace(hub, run):
    async def work():
        repo = await making.new_repo(hub)
        await making.put(hub, repo, "kept.bin", b"kept" * 10)
        await making.put(hub, repo, "old.bin", b"in history" * 10)
        await making.remove(hub, repo, "old.bin")
        await making.upload(hub, repo, b"never committed")
        before = await making.stored(hub)
        await gc.collect(hub)
        assert await making.stored(hub) == before  # all are younger than the grace

        await making.age(hub, days=8)
        done = await gc.collect(hub)
        return before, await making.stored(hub), done

    before, after, done = run(work())
    gone = sha256(b"never committed")
    assert {sha256(b"kept" * 10), sha256(b"in history" * 10), gone} <= before
    assert before - after == {gone}
    assert (done.blobs, done.bytes, done.uses) == (1, len(b"never committed"), 1)
    assert gone not in {name for (name,) in run(making.rows(hub, schema.blob, schema.blob.c.sha256))}


def test_the_bytes_of_a_deleted_repository_go_unless_another_holds_them(hub, run):
    async def work():
        first, second = await making.new_repo(hub, "acme/one"), await making.new_repo(hub, "acme/two")
        await making.put(hub, first, "a.bin", b"both")
        await making.put(hub, second, "a.bin", b"both")
        await making.put(hub, first, "b.bin", b"only the first")
        await manage.delete(hub, await making.member(hub), "acme/one")
        await making.age(hub, days=8)
        done = await gc.collect(hub)
        return await making.stored(hub), done

    left, done = run(work())
    assert sha256(b"both") in left
    assert sha256(b"only the first") not in left
    assert done.trees == 1  # the other one is the same in both


def test_branches_tags_and_pull_requests_keep_their_bytes(hub, run):
    async def work():
        repo = await making.new_repo(hub)
        async with hub.db.write() as conn:
            await refs.create(conn, repo, refs.HEADS, "dev", "main")
        await making.put(hub, repo, "a.bin", b"on a branch", revision="dev")
        operation = Put("b.bin", await making.upload(hub, repo, b"in a pull request"), True)
        bob = await making.member(hub, "bob")
        await committing.commit(hub, bob, repo, "main", [operation], title="Add b", create_pull=True)
        await making.age(hub, days=8)
        await gc.collect(hub)
        return await making.stored(hub)

    assert {sha256(b"on a branch"), sha256(b"in a pull request")} <= run(work())


def test_an_open_upload_keeps_its_bytes(hub, run):
    async def work():
        repo = await making.new_repo(hub)
        name = await making.upload(hub, repo, b"sent before, announced again")
        async with hub.db.write() as conn:
            values = {"id": "u1", "repo_id": repo.id, "oid": name, "size": 28, "parts": {}}
            await conn.execute(sa.insert(schema.upload).values(**values, expires=schema.now() + timedelta(hours=1)))
        await making.age(hub, days=8)
        await gc.collect(hub)
        kept = await making.stored(hub)
        async with hub.db.write() as conn:
            await conn.execute(sa.update(schema.upload).values(expires=schema.now() - timedelta(hours=1)))
        await gc.collect(hub)
        return name, kept, await making.stored(hub)

    name, kept, left = run(work())
    assert name in kept
    assert name not in left


def test_rows_and_files_of_a_crashed_upload_go(hub, run):
    async def work():
        repo = await making.new_repo(hub)
        name = await making.upload(hub, repo, b"half way")
        async with hub.db.write() as conn:  # as if the process had died before the last transaction of `keep`
            await conn.execute(sa.update(schema.blob).where(schema.blob.c.sha256 == name).values(state="pending"))
        old, young = hub.scratch / "in-old", hub.scratch / "in-young"
        folder = hub.scratch / "parts-old"
        folder.mkdir()
        for path in (old, young, folder / "1"):
            path.write_bytes(b"x")
        for path in (old, folder):
            os.utime(path, (time.time() - 90_000,) * 2)
        await making.age(hub, days=8)
        done = await gc.collect(hub)
        return name, await making.stored(hub), done, sorted(path.name for path in hub.scratch.iterdir())

    name, left, done, scratch = run(work())
    assert name not in left
    assert done.scratch == 2
    assert scratch == ["in-young"]


def test_a_crash_between_the_two_steps_is_finished_by_the_next_collection(hub, run):
    async def work():
        repo = await making.new_repo(hub)
        name = await making.upload(hub, repo, b"condemned")
        await making.age(hub, days=8)
        before = schema.now() - timedelta(days=7)
        await gc._drop_uses(hub, before)
        await gc._condemn(hub, before)
        assert dict(await making.rows(hub, schema.blob, schema.blob.c.sha256, schema.blob.c.state))[name] == "missing"
        await hub.blobs.delete(name)  # and then the process dies: the row is still there
        return name, await gc.collect(hub), await making.rows(hub, schema.blob, schema.blob.c.sha256)

    name, done, rows = run(work())
    assert done.blobs == 1
    assert (name,) not in rows


@pytest.mark.parametrize("bytes_gone", [True, False])
def test_bytes_that_come_again_while_they_are_collected_are_kept(hub, run, bytes_gone):
    async def work():
        repo = await making.new_repo(hub)
        name = await making.upload(hub, repo, b"condemned, then wanted")
        await making.age(hub, days=8)
        before = schema.now() - timedelta(days=7)
        await gc._drop_uses(hub, before)
        await gc._condemn(hub, before)
        if bytes_gone:
            await gc._delete(hub, before, gc.Collected())
        await making.put(hub, repo, "a.bin", b"condemned, then wanted")
        await gc._delete(hub, before, gc.Collected())
        return (
            name,
            await making.stored(hub),
            dict(await making.rows(hub, schema.blob, schema.blob.c.sha256, schema.blob.c.state)),
        )

    name, left, states = run(work())
    assert name in left
    assert states[name] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("hub", [{}, {"db": "postgres"}], indirect=True)
def test_collecting_all_the_time_loses_nothing_of_what_is_uploaded_meanwhile(hub, run):
    async def work():
        repo = await making.new_repo(hub)
        done = asyncio.Event()
        collected = []

        async def collect():
            while not done.is_set():
                collected.append(await gc.collect(hub, grace=timedelta(0)))
                await asyncio.sleep(0)

        async def write(number):
            for turn in range(6):
                data = f"bytes {(number + turn) % 4}".encode() * 50  # the same bytes come again and again
                path = f"{number}/{turn}.bin"
                while True:
                    try:
                        await making.put(hub, repo, path, data)
                        break
                    except Exception as error:  # refused, because the bytes went before the commit: sent again
                        if "not uploaded" not in str(error) and "foreign key" not in str(error).lower():
                            raise
                await making.remove(hub, repo, path) if turn % 2 else None

        collector = asyncio.create_task(collect())
        await asyncio.gather(*(write(number) for number in range(3)))
        done.set()
        await collector
        async with hub.db.read() as conn:
            head = await commits.resolve(conn, repo, "main")
            manifest = await commits.manifest_of(conn, head.tree)
        return manifest, await making.stored(hub), len(collected)

    manifest, stored, collections = run(work())
    assert len(manifest) == 1 + 3 * 3
    assert {entry.sha256 for entry in manifest.values()} <= stored
    assert collections > 1


def test_what_has_expired_goes(hub, run):
    async def work():
        past, future = schema.now() - timedelta(seconds=1), schema.now() + timedelta(days=1)
        async with hub.db.write() as conn:
            for table, key, column in ((schema.session, "digest", "expires"), (schema.tombstone, "key", "until")):
                more = {"account_id": 1, "csrf": ""} if table is schema.session else {"owner_id": 1}
                for name, moment in (("past", past), ("future", future)):
                    await conn.execute(sa.insert(table).values(**{key: name, column: moment}, **more))
        await gc.expire(hub)
        return [
            await making.rows(hub, schema.session, schema.session.c.digest),
            await making.rows(hub, schema.tombstone, schema.tombstone.c.key),
        ]

    assert run(work()) == [[("future",)], [("future",)]]
