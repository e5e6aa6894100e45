"""Every kind of damage is found; what can be derived is repaired; a hub that is whole has none."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from adapterhub.db import schema
from adapterhub.ops import fsck
from tests.adapterhub.ops import making
from tests.adapterhub.ops.making import sha256


async def findings(hub, **options):
    return [finding async for finding in fsck.check(hub, **options)]


async def fill(hub):
    repo = await making.new_repo(hub)
    await making.put(hub, repo, "a.bin", b"first" * 100)
    await making.put(hub, repo, "README.md", b"# Title\n\nSome words.\n", lfs=False)
    return repo


def change(table, *where, **values):
    async def do(hub):
        async with hub.db.write() as conn:
            await conn.execute(sa.update(table).where(*where).values(**values))

    return do


def delete(table, *where):
    async def do(hub):
        async with hub.db.write() as conn:
            if hub.db.is_sqlite:
                await conn.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
            await conn.execute(sa.delete(table).where(*where))

    return do


def blob_file(hub, data):
    return hub.blobs.local_path(sha256(data))


async def truncate(hub):
    blob_file(hub, b"first" * 100).write_bytes(b"fir")


async def lose(hub):
    blob_file(hub, b"first" * 100).unlink()


async def flip(hub):
    blob_file(hub, b"first" * 100).write_bytes(b"First" * 100)


async def stray(hub):
    path = Path(hub.blobs.local_path("ab" * 32))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nobody's")


@pytest.mark.parametrize("hub", [{}, {"db": "postgres"}, {"blobs": "s3"}], indirect=True)
def test_a_hub_that_is_whole(hub, run):
    run(fill(hub))
    assert run(findings(hub, deep=True)) == []


ZERO = "0" * 40
FIRST = schema.blob.c.sha256 == sha256(b"first" * 100)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change(schema.ref, oid=ZERO), "which does not exist"),
        (change(schema.repo, default_branch="gone"), "the default branch 'gone' does not exist"),
        (delete(schema.commit, schema.commit.c.parent.is_(None)), "its parent"),
        (change(schema.commit, title="another"), "its content has the id"),
        (change(schema.tree, manifest={"x": [sha256(b"x"), ZERO, 1, 0]}), "its content has another id"),
        (change(schema.blob, FIRST, state="missing"), "a.bin needs the blob"),
        (change(schema.blob, FIRST, size=7), "differ in size or id"),
        (truncate, "should have 500 bytes, but has 3"),
        (lose, "should have 500 bytes, but has None"),
        (stray, "the database does not know them"),
    ],
)
def test_damage_is_found_and_what_cannot_be_derived_is_not_said_to_be_repaired(hub, run, damage, said):
    run(fill(hub))
    run(damage(hub))
    found = run(findings(hub))
    assert any(said in finding.text for finding in found), found
    assert any(said in finding.text and not finding.repaired for finding in run(findings(hub, repair=True)))


def test_changed_bytes_of_the_same_size_are_found_by_looking_deeper(hub, run):
    run(fill(hub))
    run(flip(hub))
    assert run(findings(hub)) == []
    (found,) = run(findings(hub, deep=True))
    assert "another hash" in found.text
    assert sha256(b"first" * 100) in str(found)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (delete(schema.blob_use, schema.blob_use.c.sha256 == sha256(b"first" * 100)), "not noted as a holder"),
        (change(schema.repo, bytes=10**9), "is said to hold 1000000000 bytes"),
        (change(schema.adapter, title="typed in"), "its row in the index"),
        (delete(schema.adapter), "its row in the index"),
    ],
)
@pytest.mark.parametrize("hub", [{}, {"db": "postgres"}], indirect=True)
def test_what_is_derived_is_repaired(hub, run, damage, said):
    run(fill(hub))
    run(damage(hub))
    assert any(said in finding.text and not finding.repaired for finding in run(findings(hub)))
    assert any(said in finding.text for finding in run(findings(hub)))  # looking alone changes nothing
    repaired = run(findings(hub, repair=True))
    assert all(finding.repaired for finding in repaired)
    assert "(repaired)" in str(repaired[0])
    assert run(findings(hub)) == []


def test_a_broken_off_creation_is_finished(hub, run):
    async def work():
        await fill(hub)
        await delete(schema.ref)(hub)
        await delete(schema.commit)(hub)
        before = await findings(hub)
        repaired = await findings(hub, repair=True)
        return before, repaired, await findings(hub), await making.rows(hub, schema.commit, schema.commit.c.title)

    before, repaired, after, titles = run(work())
    assert any("default branch" in finding.text for finding in before)
    assert repaired[0].text == "had no first commit"
    assert after == []
    assert titles == [("initial commit",)]
