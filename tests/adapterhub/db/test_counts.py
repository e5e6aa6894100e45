"""Are counts kept when they take long, never for longer than said, and renewed beside those who ask?"""

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from adapterhub.db import counts
from adapterhub.db.counts import Counts
from adapterhub.db.engine import Database

LONG = 1e9
# How long a count is new, how long it is given out after that, and from how many seconds on it is kept.
KEPT = {"_FACTOR": LONG, "_QUICK": 0}
OLD = {"_FACTOR": 0, "_LATE": LONG, "_QUICK": 0}
GONE = {"_FACTOR": 0, "_LATE": 0, "_QUICK": 0}
QUICK = {"_QUICK": LONG}


class Counter:
    """Counts how often it counts. It takes until `open` is set."""

    def __init__(self):
        self.calls, self.conns, self.open = 0, [], asyncio.Event()
        self.open.set()
        self.error = None

    async def __call__(self, conn):
        self.conns.append(conn)
        await self.open.wait()
        await conn.execute(sa.text("SELECT 1"))
        if self.error:
            raise self.error
        self.calls += 1
        return self.calls


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs `check(ask, count, kept, db)`; `ask(times)` asks for a count with a connection of its own."""

    def runner(check, times):
        def become(times):
            for name, value in times.items():
                monkeypatch.setattr(counts, name, value)

        async def main():
            db = Database(f"sqlite+aiosqlite:///{tmp_path / 'hub.db'}")
            kept, count = Counts(db), Counter()

            async def ask(key="key", now=times):
                become(now)
                async with db.read() as conn:
                    return await kept.get(conn, key, count)

            try:
                await check(ask, count, kept, db)
            finally:
                await kept.close()
                assert db.engine.pool.checkedout() == 0
                await db.close()

        asyncio.run(main())

    return runner


async def beside(kept):
    """Waits for the counts that are made beside the requests."""
    await asyncio.gather(*kept._running.values())


@pytest.mark.parametrize(
    ("times", "expected"), [(QUICK, [1, 2, 3]), (KEPT, [1, 1, 1]), (GONE, [1, 2, 3])], ids=["quick", "kept", "gone"]
)
def test_how_often_is_counted(run, times, expected):
    async def check(ask, count, kept, db):
        assert [await ask() for _ in range(3)] == expected
        assert not kept._running

    run(check, times)


def test_what_is_kept_is_of_its_key(run):
    async def check(ask, count, kept, db):
        assert [await ask(key) for key in ("a", "b", "a", "b")] == [1, 2, 1, 2]

    run(check, KEPT)


def test_an_old_count_is_given_out_at_once_and_renewed_with_another_connection(run):
    async def check(ask, count, kept, db):
        assert await ask() == 1
        count.open.clear()
        assert [await ask() for _ in range(5)] == [1] * 5
        assert len(kept._running) == 1
        count.open.set()
        await beside(kept)
        assert await ask(now=KEPT) == 2
        assert count.calls == 2
        assert count.conns[0] is not count.conns[1]

    run(check, OLD)


def test_counts_beside_requests_are_made_one_after_the_other(run):
    async def check(ask, count, kept, db):
        for key in range(20):
            await ask(key)
        count.open.clear()
        for key in range(20):
            await ask(key)
        await asyncio.sleep(0.05)
        assert len(kept._running) == 20
        assert db.engine.pool.checkedout() == 1
        count.open.set()
        await beside(kept)
        assert sorted([await ask(key, KEPT) for key in range(20)]) == list(range(21, 41))

    run(check, OLD)


def test_who_asks_next_is_told_of_an_error(run):
    async def check(ask, count, kept, db):
        await ask()
        count.error = OperationalError("SELECT 1", {}, Exception("disk I/O error"))
        assert await ask() == 1
        await beside(kept)
        assert await ask() == 1
        with pytest.raises(OperationalError, match="disk I/O error"):
            await ask("another")

    run(check, OLD)


def test_closing_ends_what_is_being_counted(run):
    async def check(ask, count, kept, db):
        await ask()
        count.open.clear()
        await ask()
        await asyncio.sleep(0.05)
        await asyncio.wait_for(kept.close(), 5)
        assert (count.calls, kept._running) == (1, {})

    run(check, OLD)


def test_only_so_many_are_kept_and_the_oldest_goes_first(run, monkeypatch):
    monkeypatch.setattr(counts, "_MOST", 3)

    async def check(ask, count, kept, db):
        assert [await ask(key) for key in "abcd"] == [1, 2, 3, 4]
        assert [await ask(key) for key in "bcda"] == [2, 3, 4, 5]

    run(check, KEPT)
