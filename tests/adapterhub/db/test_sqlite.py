"""Do connections with fewer steps give the same rows, in one piece or as a stream, and let go of their locks?"""

import asyncio

import pytest
import sqlalchemy as sa

from adapterhub.db.engine import Database


@pytest.fixture
def run(tmp_path):
    """Runs `check(database)` on a new database with a table of numbers."""

    def runner(check, count):
        async def main():
            database = Database(f"sqlite+aiosqlite:///{tmp_path / 'hub.db'}")
            async with database.write() as conn:
                await conn.execute(sa.text("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
                if count:
                    await conn.execute(sa.text("INSERT INTO number VALUES (:n)"), [{"n": n} for n in range(count)])
            try:
                await check(database)
            finally:
                await database.close()

        asyncio.run(main())

    return runner


ALL = sa.text("SELECT n FROM number ORDER BY n")


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1000, 1200])
def test_all_rows_come(run, count):
    async def check(database):
        async with database.read() as conn:
            assert (await conn.execute(ALL)).scalars().all() == list(range(count))
            assert (await conn.execute(ALL)).scalars().first() == (0 if count else None)
            assert [row.n async for row in await conn.stream(ALL)] == list(range(count))
            async for row in await conn.stream(ALL):
                assert row.n == 0
                break
            pieces = (await conn.stream(ALL)).partitions(333)
            assert [len(piece) async for piece in pieces] == [min(333, count - at) for at in range(0, count, 333)]
        async with database.write() as conn:
            gone = await conn.execute(sa.text("DELETE FROM number RETURNING n"))
            assert sorted(gone.scalars()) == list(range(count))
        async with database.read() as conn:
            assert (await conn.execute(ALL)).scalars().all() == []

    run(check, count)


def test_errors_arrive_and_undo(run):
    async def check(database):
        async def write():
            async with database.write() as conn:
                await conn.execute(sa.text("INSERT INTO number VALUES (7)"))
                await conn.execute(sa.text("INSERT INTO number VALUES (0)"))

        with pytest.raises(sa.exc.IntegrityError):
            await write()
        async with database.read() as conn:
            assert (await conn.execute(ALL)).scalars().all() == [0, 1]

    run(check, 2)


def test_who_is_cancelled_while_waiting_for_the_lock_does_not_keep_it(run):
    async def check(database):
        async def write(value):
            async with database.write() as conn:
                await conn.execute(sa.text("INSERT INTO number VALUES (:n)"), {"n": value})

        for value in range(20):
            async with database.write():
                waiting = [asyncio.create_task(write(100 + value)) for _ in range(3)]
                await asyncio.sleep(0.01)
                for task in waiting:
                    task.cancel()
                await asyncio.sleep(0)
            await asyncio.gather(*waiting, return_exceptions=True)
            await asyncio.wait_for(write(value), timeout=5)
        async with database.read() as conn:
            assert [n for n in (await conn.execute(ALL)).scalars() if n < 100] == list(range(20))

    run(check, 0)
