"""Timed jobs, the counting of downloads, and the first start."""

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from adapterhub import accounts
from adapterhub.changes import manage
from adapterhub.db import schema
from adapterhub.errors import Forbidden
from adapterhub.ops import downloads, jobs, setup
from tests.adapterhub.ops import making

BOTH = pytest.mark.parametrize("hub", [{}, {"db": "postgres"}], indirect=True)


@BOTH
def test_of_many_who_want_a_lease_one_gets_it_until_it_expires(hub, run):
    async def work():
        hour = timedelta(hours=1)
        first = await asyncio.gather(*(jobs.take_lease(hub, "gc", hour) for _ in range(6)))
        other = await jobs.take_lease(hub, "downloads", hour)
        async with hub.db.write() as conn:
            await conn.execute(sa.update(schema.lease).values(expires=schema.now() - timedelta(seconds=1)))
        return first, other, await jobs.take_lease(hub, "gc", hour), await jobs.take_lease(hub, "gc", hour)

    first, *rest = run(work())
    assert sorted(first) == [False] * 5 + [True]
    assert rest == [True, True, False]


def test_jobs_run_when_they_are_due_and_one_that_fails_stops_no_other(hub, run, monkeypatch, caplog):
    ran = []

    async def good(hub):
        ran.append("good")

    async def bad(hub):
        raise RuntimeError("no luck")

    day = timedelta(days=1)
    monkeypatch.setattr(jobs, "JOBS", (jobs.Job("bad", day, bad), jobs.Job("good", day, good)))
    assert run(jobs.run_due(hub)) == ["good"]
    assert run(jobs.run_due(hub)) == []
    assert ran == ["good"]
    assert "'bad' failed" in caplog.text


def test_the_real_jobs_run(hub, run):
    assert run(jobs.run_due(hub)) == ["downloads", "expire", "gc", "load"]


def test_jobs_start_and_stop_with_the_block(hub, run, monkeypatch):
    ran = asyncio.Event()

    async def job(hub):
        ran.set()

    monkeypatch.setattr(jobs, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(jobs, "JOBS", (jobs.Job("job", timedelta(days=1), job),))

    async def work():
        async with jobs.Jobs(hub, enabled=True):
            await asyncio.wait_for(ran.wait(), 5)
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert run(work()) == []


@BOTH
def test_downloads_are_counted_summed_and_kept_at_the_end(hub, run):
    async def work():
        one, two = await making.new_repo(hub, "acme/one"), await making.new_repo(hub, "acme/two")
        gone = await making.new_repo(hub, "acme/gone")
        async with jobs.Jobs(hub, enabled=False) as running:
            for _ in range(3):
                running.downloads.add(one.uid)
            await running.downloads.flush(hub)
            running.downloads.add(one.uid)
            running.downloads.add(two.uid)
            running.downloads.add(gone.uid)
            await manage.delete(hub, await making.member(hub), "acme/gone")
        old = schema.now().date() - timedelta(days=downloads.DAYS)
        async with hub.db.write() as conn:
            row = {"repo_id": two.id, "day": old, "count": 7}
            await conn.execute(sa.insert(schema.download_day).values(row))
            await conn.execute(sa.insert(schema.download_day).values({**row, "day": old - timedelta(days=400)}))
            await conn.execute(sa.update(schema.repo).where(schema.repo.c.id == two.id).values(downloads=8))
        await downloads.roll_up(hub)
        repo = schema.repo
        return (
            await making.rows(hub, repo, repo.c.name, repo.c.downloads, repo.c.downloads_all),
            await making.rows(hub, schema.adapter, schema.adapter.c.downloads),
            len(await making.rows(hub, schema.download_day)),
        )

    counts, copies, days = run(work())
    assert sorted(counts) == [("one", 4, 4), ("two", 1, 1)]
    assert sorted(copies) == [(1,), (4,)]
    assert days == 3


@BOTH
def test_the_setup_key_works_once_and_only_while_there_is_no_admin(hub, run):
    async def work():
        assert await setup.setup_key(hub) is None  # alice runs the hub
        async with hub.db.write() as conn:
            await conn.execute(sa.update(schema.account).values(is_admin=False))
        older, key = await setup.setup_key(hub), await setup.setup_key(hub)
        stored = str(await making.rows(hub, schema.lease))
        assert key not in stored
        for wrong in (older, "", "é", key + "x"):
            with pytest.raises(Forbidden):
                async with hub.db.write() as conn:
                    await setup.consume_setup_key(conn, wrong)
        async with hub.db.write() as conn:
            await setup.consume_setup_key(conn, key)
            await accounts.create_user(conn, "carol", is_admin=True)
        with pytest.raises(Forbidden):
            async with hub.db.write() as conn:
                await setup.consume_setup_key(conn, key)

    run(work())


def test_a_setup_key_is_of_no_use_when_an_admin_has_come_meanwhile_or_a_day_has_passed(hub, run):
    async def work():
        async with hub.db.write() as conn:
            await conn.execute(sa.update(schema.account).values(is_admin=False))
        key = await setup.setup_key(hub)
        async with hub.db.write() as conn:
            await accounts.create_user(conn, "carol", is_admin=True)
        with pytest.raises(Forbidden):
            async with hub.db.write() as conn:
                await setup.consume_setup_key(conn, key)
        async with hub.db.write() as conn:
            await conn.execute(sa.update(schema.account).values(is_admin=False))
        key = await setup.setup_key(hub)
        async with hub.db.write() as conn:
            await conn.execute(sa.update(schema.lease).values(expires=schema.now()))
        with pytest.raises(Forbidden):
            async with hub.db.write() as conn:
                await setup.consume_setup_key(conn, key)

    run(work())


def test_preparing_twice_changes_nothing(hub, run):
    tables = (schema.task, schema.subtask, schema.architecture, schema.account)

    async def work():
        before = [await making.rows(hub, table) for table in tables]
        await setup.prepare(hub)
        return before, [await making.rows(hub, table) for table in tables]

    before, after = run(work())
    assert before == after
    assert all(before)
