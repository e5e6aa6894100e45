"""The migrations against the tables that the program uses."""

import asyncio
import json

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from adapterhub import accounts
from adapterhub.db import migrate, schema
from adapterhub.db.engine import Database


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/hub.db"
    cluster = request.getfixturevalue("postgres_cluster")
    return cluster.url(cluster.create())


def with_database(url, work):
    async def run():
        db = Database(url)
        try:
            return await work(db)
        finally:
            await db.close()

    return asyncio.run(run())


def differences(connection):
    options = {"include_name": migrate.is_ours, "compare_type": True}
    return compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata)


async def compared(db):
    async with db.read() as conn:
        return await conn.run_sync(differences)


def test_the_migrations_make_the_tables_of_the_schema(url):
    async def work(db):
        await migrate.upgrade(db)
        return await compared(db)

    assert with_database(url, work) == []


def reflected(connection):
    """All that the database says of its tables."""
    inspector = sa.inspect(connection)
    return {
        name: (
            [(column["name"], str(column["type"]), column["nullable"], column["default"]) for column in columns],
            inspector.get_pk_constraint(name),
            sorted(inspector.get_foreign_keys(name), key=str),
            sorted(json.dumps(index, default=str) for index in inspector.get_indexes(name)),
            sorted(inspector.get_unique_constraints(name), key=str),
        )
        for name in sorted(inspector.get_table_names())
        if name != "alembic_version"
        for columns in [sorted(inspector.get_columns(name), key=lambda column: column["name"])]
    }


def test_migrated_tables_have_the_defaults_keys_and_indexes_of_the_schema(url):
    async def work(db):
        async with db.write() as conn:
            await conn.run_sync(schema.metadata.create_all)
            wanted = await conn.run_sync(reflected)
            await conn.run_sync(schema.metadata.drop_all)
        await migrate.upgrade(db)
        async with db.read() as conn:
            return wanted, await conn.run_sync(reflected)

    wanted, found = with_database(url, work)
    assert found == wanted
    assert len(found) == len(schema.metadata.tables)


def test_the_comparison_sees_a_column_that_is_missing(url):
    async def work(db):
        await migrate.upgrade(db)
        async with db.write() as conn:
            await conn.execute(sa.text("ALTER TABLE account DROP COLUMN about"))
        return await compared(db)

    ((kind, _, table, column),) = with_database(url, work)
    assert (kind, table, column.name) == ("add_column", "account", "about")


def test_an_upgrade_keeps_what_is_there_and_says_what_was_there_before(url):
    async def work(db):
        before = await migrate.upgrade(db)
        async with db.write() as conn:
            await accounts.create_user(conn, "alice")
        again = await migrate.upgrade(db)
        async with db.read() as conn:
            return before, again, await migrate.current(db), (await accounts.find_account(conn, "alice"))["name"]

    assert with_database(url, work) == (None, migrate.HEAD, migrate.HEAD, "alice")


async def row_of_alice(conn):
    """An account as it was stored from the first schema on; `accounts` asks tables that came later."""
    made = sa.insert(schema.account).values(name="alice", name_key="alice", kind="user")
    return (await conn.execute(made)).inserted_primary_key[0]


def test_what_repositories_held_before_0002_their_owners_pay_for(url):
    async def work(db):
        await migrate.upgrade(db, "0001")
        async with db.write() as conn:
            owner = await row_of_alice(conn)
            names = {"namespace": "alice", "name": "m", "name_key": "m", "key": "alice/m"}
            await conn.execute(sa.insert(schema.repo).values(uid="1", owner_id=owner, **names))
            await conn.execute(sa.insert(schema.blob).values(sha256="ab", git_oid="cd", size=9, state="ok"))
            await conn.execute(sa.text("INSERT INTO blob_use (repo_id, sha256) VALUES (1, 'ab')"))
        assert await migrate.upgrade(db) == "0001"
        async with db.read() as conn:
            return (await conn.execute(sa.select(schema.blob_use))).all()

    assert with_database(url, work) == [(1, "ab", None)]


def test_ids_are_given_out_once_and_0003_keeps_what_is_there(url):
    def repo(name):
        names = {"namespace": "alice", "name": name, "name_key": name, "key": f"alice/{name}"}
        return sa.insert(schema.repo).values(uid=name, owner_id=1, **names)

    async def work(db):
        await migrate.upgrade(db, "0002")
        async with db.write() as conn:
            await row_of_alice(conn)
            for name in ("one", "two"):
                await conn.execute(repo(name))
            await conn.execute(sa.insert(schema.ref).values(repo_id=2, name="refs/heads/main", oid="ab"))
            await conn.execute(sa.insert(schema.redirect).values(key="alice/old", repo_id=2))
        await migrate.upgrade(db)
        async with db.write() as conn:
            kept = [len((await conn.execute(sa.select(t))).all()) for t in (schema.repo, schema.ref, schema.redirect)]
            await conn.execute(sa.delete(schema.repo).where(schema.repo.c.name == "two"))
            gone = [len((await conn.execute(sa.select(table))).all()) for table in (schema.ref, schema.redirect)]
            await conn.execute(repo("three"))
            return kept, gone, (await conn.execute(sa.select(schema.repo.c.id, schema.repo.c.name))).all()

    assert with_database(url, work) == ([2, 1, 1], [0, 0], [(1, "one"), (3, "three")])


def test_a_migration_that_breaks_keys_changes_nothing(tmp_path):
    async def work(db):
        await migrate.upgrade(db)
        with pytest.raises(RuntimeError, match="1 rows of ref name rows that are not there"):
            async with db.write(foreign_keys=False) as conn:
                await conn.execute(sa.insert(schema.ref).values(repo_id=9, name="refs/heads/main", oid="ab"))
        with pytest.raises(sa.exc.IntegrityError):
            async with db.write() as conn:
                await conn.execute(sa.insert(schema.ref).values(repo_id=9, name="refs/heads/main", oid="ab"))
        async with db.read() as conn:
            return (await conn.execute(sa.select(schema.ref))).all()

    assert with_database(f"sqlite+aiosqlite:///{tmp_path}/hub.db", work) == []


def test_several_may_upgrade_at_once(url):
    async def work(db):
        await asyncio.gather(*(migrate.upgrade(db) for _ in range(4)))
        return await compared(db)

    assert with_database(url, work) == []


def test_a_database_of_a_newer_version_is_left_alone(url):
    async def work(db):
        await migrate.upgrade(db)
        async with db.write() as conn:
            await conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(ValueError, match="revision 9999"):
            await migrate.upgrade(db)

    with_database(url, work)
