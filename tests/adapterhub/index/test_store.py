"""The index as commits leave it, against one made anew from the files."""

import json

import pytest
import sqlalchemy as sa

from adapterhub import accounts, ingest
from adapterhub.changes import committing, manage
from adapterhub.changes.committing import Put, Remove
from adapterhub.db import schema
from adapterhub.errors import RepoNotFound
from adapterhub.index import store
from adapterhub.index.record import Record
from adapterhub.index.yanks import set_yank
from adapterhub.ops.reindex import reindex
from adapterhub.repos import commits
from tests.adapterhub.index.files import safetensors

CARD = """---
tags: ["adapterhub:{place}"]
license: mit
language: [sw]
dependencies: [{{key: alice/base, description: below it}}]
results:
- {{dataset: imdb, split: test, metric: Acc, value: 0.9}}
---
# {title}

Finds things.
"""
CONFIG = {
    "config": {"mh_adapter": False, "output_adapter": True, "reduction_factor": 4, "non_linearity": "relu"},
    "model_name": "bert-base-uncased",
    "model_type": "bert",
    "model_class": "BertAdapterModel",
    "hidden_size": 8,
}
WEIGHTS = safetensors({"bert.encoder.layer.0.output.adapters.a.adapter_down.0.weight": (2, 8)})


def files(title, place="sentiment/imdb"):
    return {
        "README.md": CARD.format(title=title, place=place).encode(),
        "adapter_config.json": json.dumps(CONFIG).encode(),
        "adapter.safetensors": WEIGHTS,
    }


STRANGE = f"a\0b\ud800{'é' * 300}"
STRANGE_CONFIG = {
    "config": {**CONFIG["config"], "non_linearity": STRANGE, STRANGE: float("nan")},
    **dict.fromkeys(("model_name", "model_type", "model_class"), STRANGE),
}
STRANGE_CARD = (
    "---\n"
    + json.dumps(
        {
            "tags": [f"{'t' * 250}{i}" for i in range(3)],
            "license": STRANGE.replace("\ud800", ""),
            "library_name": "x" * 300,
            "pipeline_tag": "x" * 300,
            "language": "x" * 300,
            "datasets": ["x" * 300],
            "dependencies": [f"{'d' * 250}{i}" for i in range(3)],
            "results": [{"dataset": "x" * 300, "split": "x" * 300, "metric": "m" * 300, "value": 0.5}],
        }
    )
    + "\n---\n# "
    + "t" * 500
)


async def user(hub, name="alice"):
    async with hub.db.read() as conn:
        account = await accounts.find_account(conn, name)
        return await accounts.principal(hub.db, account["id"])


async def push(hub, who, repo, contents, removed=()):
    async def once(data):
        yield data

    staged = [await ingest.stage(hub, once(data), expect_size=len(data), name=path) for path, data in contents.items()]
    blobs = await ingest.keep(hub, staged, repo_id=repo.id)
    operations = [Put(path, blob.sha256, lfs=False) for path, blob in zip(contents, blobs, strict=True)]
    operations += [Remove(path) for path in removed]
    return await committing.commit(hub, who, repo, "main", operations, title="change")


async def snapshot(hub):
    """All rows that are derived, without the numbers that the database gives them."""
    async with hub.db.read() as conn:
        found = {}
        for table in (schema.adapter, schema.adapter_tag, schema.dependency, schema.evaluation):
            rows = (await conn.execute(sa.select(table))).mappings().all()
            plain = [{key: value for key, value in row.items() if key != "id"} for row in rows]
            found[table.name] = sorted(plain, key=lambda row: json.dumps(row, default=str, sort_keys=True))
        if hub.db.is_sqlite:
            found["text"] = (await conn.execute(sa.text("SELECT rowid, text FROM adapter_fts ORDER BY rowid"))).all()
        return found


async def history_of_a_hub(hub):
    """Repositories that were changed, emptied, hidden, withdrawn and deleted."""
    who = await user(hub)
    made = {}
    for name in ("base", "changed", "emptied", "hidden", "withdrawn", "deleted"):
        made[name] = await manage.create(hub, who, f"alice/{name}")
        await push(hub, who, made[name], files(name.title()))
    await push(hub, who, made["changed"], files("Better", "nli/multinli"))
    await push(hub, who, made["emptied"], {"note.txt": b"gone"}, removed=[*files("")])
    await manage.set_private(hub, who, "alice/hidden", True)
    async with hub.db.write() as conn:
        await set_yank(conn, who, made["withdrawn"], "main", "wrong")
    await manage.delete(hub, who, "alice/deleted")
    return made


def test_a_rebuilt_index_equals_the_kept_one(hub, run):
    run(history_of_a_hub(hub))
    kept = run(snapshot(hub))
    assert run(reindex(hub)) == 5
    assert run(snapshot(hub)) == kept
    titles = {row["title"]: row["visible"] for row in kept["adapter"]}
    assert titles == {"Better": True, "": False, "Hidden": False, "Withdrawn": False, "Base": True}


def test_a_lost_index_comes_back(hub, run):
    made = run(history_of_a_hub(hub))
    kept = run(snapshot(hub))

    async def lose():
        async with hub.db.write() as conn:
            for repo in made.values():
                await store.remove(conn, repo.id)

    run(lose())
    assert not any(run(snapshot(hub)).values())
    run(reindex(hub))
    assert run(snapshot(hub)) == kept


def test_a_repository_hidden_during_a_commit_stays_hidden(hub, run):
    async def work():
        who = await user(hub)
        before = await manage.create(hub, who, "alice/secret")
        await push(hub, who, before, files("Secret"))
        await manage.set_private(hub, who, "alice/secret", True)
        await push(hub, who, before, files("More"))  # `before` still tells that it is public
        async with hub.db.read() as conn:
            return (await conn.execute(sa.select(schema.adapter.c.title, schema.adapter.c.visible))).all()

    assert run(work()) == [("More", False)]


def test_a_deleted_repository_is_not_put_back(hub, run):
    async def work():
        who = await user(hub)
        repo = await manage.create(hub, who, "alice/gone")
        async with hub.db.read() as conn:
            head = await commits.resolve(conn, repo, "main")
        await manage.delete(hub, who, "alice/gone")
        async with hub.db.write() as conn:
            await store.put(conn, repo, head, Record())

    with pytest.raises(RepoNotFound):
        run(work())


def test_whatever_files_say_can_be_stored(hub, run):
    contents = files("x") | {
        "README.md": STRANGE_CARD.encode(),
        "adapter_config.json": json.dumps(STRANGE_CONFIG).encode(),
    }

    async def work():
        who = await user(hub)
        repo = await manage.create(hub, who, "alice/strange", private=False)
        await push(hub, who, repo, contents)
        kept = await snapshot(hub)
        await reindex(hub)
        assert await snapshot(hub) == kept
        async with hub.db.read() as conn:
            return (await conn.execute(sa.select(schema.adapter))).mappings().one()

    row = run(work())
    assert row["non_linearity"] == f"ab?{'é' * 300}"[:32]
    assert row["config"]["non_linearity"] == f"ab?{'é' * 300}"
    assert row["config"][f"ab?{'é' * 300}"] is None
