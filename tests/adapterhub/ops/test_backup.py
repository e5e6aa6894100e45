"""A copy, restored elsewhere, is the same hub."""

import json

import pytest
import sqlalchemy as sa

from adapterhub import accounts
from adapterhub.db import schema
from adapterhub.hub import Hub
from adapterhub.index import search
from adapterhub.ops import backup, fsck
from adapterhub.settings import Settings
from tests.adapterhub.ops import making

LEFT_OUT = {table.name for table in backup._LEFT_OUT}


async def contents(hub):
    """All rows of all tables that are kept, and all bytes."""
    async with hub.db.read() as conn:
        tables = {}
        for table in schema.metadata.sorted_tables:
            if table.name not in LEFT_OUT:
                tables[table.name] = sorted(map(tuple, (await conn.execute(sa.select(table))).all()), key=repr)
    blobs = {name: b"".join([chunk async for chunk in hub.blobs.open(name)]) async for name in hub.blobs.names()}
    return tables, blobs


async def fill(hub):
    repo = await making.new_repo(hub)
    await making.put(hub, repo, "README.md", b"---\nlicense: mit\ntags: [x]\n---\n# Sentiment of films\n", lfs=False)
    config = {"peft_type": "LORA", "base_model_name_or_path": "bert-base-uncased", "r": 8, "target_modules": ["query"]}
    await making.put(hub, repo, "adapter_config.json", json.dumps(config).encode(), lfs=False)
    await making.put(hub, repo, "notes.txt", b"words\n" * 1000)
    return repo


@pytest.fixture
def new_hub(request, run, tmp_path):
    """Opens an empty hub: nothing was migrated."""
    opened = []

    def make(kind, blobs=""):
        db = ""
        if kind == "postgres":
            cluster = request.getfixturevalue("postgres_cluster")
            db = cluster.url(cluster.create())
        made = run(Hub.open(Settings(data=tmp_path / f"new-{len(opened)}", db=db, blobs=blobs, limits={})))
        opened.append(made)
        return made

    yield make
    for made in opened:
        run(made.close())


@pytest.mark.parametrize(
    ("hub", "tables", "target"),
    [
        ({}, False, "sqlite"),
        ({}, True, "sqlite"),
        ({"db": "postgres"}, False, "postgres"),
        ({}, True, "postgres"),
        ({"db": "postgres"}, False, "sqlite"),
        ({"blobs": "s3"}, False, "sqlite"),
    ],
    indirect=["hub"],
)
def test_a_restored_hub_is_the_same_and_goes_on(hub, run, tmp_path, new_hub, tables, target):
    async def work(restored):
        repo = await fill(hub)
        made = await backup.backup(hub, tmp_path / "copy", tables=tables)
        wanted = await contents(hub)
        await making.put(hub, repo, "later.bin", b"after the copy")
        await backup.restore(restored, tmp_path / "copy")
        found = await contents(restored)
        problems = [finding async for finding in fsck.check(restored, deep=True)]
        async with restored.db.read() as conn:
            query = search.Query(q="films")
            hits = (await search.query(conn, query, accounts.ANONYMOUS)).total
        second = await making.new_repo(restored, "acme/after")  # numbers go on where they were
        await making.put(restored, second, "b.bin", b"new")
        return made, wanted, found, problems, hits

    made, wanted, found, problems, hits = run(work(new_hub(target)))
    assert found == wanted
    assert problems == []
    assert made.blobs == made.copied == len(wanted[1])
    assert hits == 1


def test_a_second_copy_takes_only_what_is_new(hub, run, tmp_path):
    async def work():
        repo = await fill(hub)
        first = await backup.backup(hub, tmp_path / "copy")
        await making.put(hub, repo, "b.bin", b"new")
        return first, await backup.backup(hub, tmp_path / "copy")

    first, second = run(work())
    assert (second.blobs, second.copied) == (first.blobs + 1, 1)
    facts = json.loads((tmp_path / "copy" / "backup.json").read_text())
    assert facts["blobs"] == second.blobs
    assert (tmp_path / "copy" / "secret").stat().st_mode & 0o77 == 0


def test_sessions_and_leases_are_not_in_the_tables(hub, run, tmp_path):
    run(backup.backup(hub, tmp_path / "copy", tables=True))
    kept = {path.stem for path in (tmp_path / "copy" / "tables").iterdir()}
    assert kept == set(schema.metadata.tables) - LEFT_OUT


def test_only_a_complete_copy_is_restored_and_only_into_an_empty_hub(hub, run, tmp_path, new_hub):
    copy = tmp_path / "copy"
    run(backup.backup(hub, copy))
    with pytest.raises(ValueError, match="not empty"):
        run(backup.restore(hub, copy))
    facts = json.loads((copy / "backup.json").read_text())
    (copy / "backup.json").write_text(json.dumps({**facts, "revision": "9999"}))
    with pytest.raises(ValueError, match="Install a newer one"):
        run(backup.restore(new_hub("sqlite"), copy))
    (copy / "backup.json").unlink()
    with pytest.raises(ValueError, match="no complete copy"):
        run(backup.restore(new_hub("sqlite"), copy))


def test_sqlites_file_is_not_for_postgres(hub, run, tmp_path, new_hub):
    run(backup.backup(hub, tmp_path / "copy"))
    with pytest.raises(ValueError, match="--tables"):
        run(backup.restore(new_hub("postgres"), tmp_path / "copy"))
