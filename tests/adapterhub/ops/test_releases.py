"""Hubs that earlier releases made: brought up to date, they hold what they held.

`releases/<migration>.zip` is the data folder of a small hub at that migration, made by the program of its time: users
`alice` and `bob`, the organisation `acme`, a repository with some commits, a tag, a pull request and a discussion, a
private one, and one that was renamed. `told.json` in it has the tokens and the hashes of what was stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapterhub.db import migrate, schema
from adapterhub.hub import Hub
from adapterhub.ops import fsck
from adapterhub.ops.reindex import reindex
from adapterhub.ops.setup import prepare
from adapterhub.settings import Settings
from tests.adapterhub.acceptance import seed
from tests.adapterhub.conftest import HubServer, serving

RELEASES = sorted((Path(__file__).parent / "releases").glob("*.zip"))


@pytest.fixture(params=RELEASES, ids=lambda path: path.stem)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The data folder of a release, as its program left it."""
    shutil.unpack_archive(request.param, tmp_path / "hub")
    return tmp_path / "hub"


def opened(data: Path, work: Any) -> Any:
    async def run() -> Any:
        hub = await Hub.open(Settings(data=data, limits={}))
        try:
            return await work(hub)
        finally:
            await hub.close()

    return asyncio.run(run())


@pytest.fixture
def server(data: Path) -> Iterator[HubServer]:
    """The hub of a release, served by this program."""
    told = json.loads((data / "told.json").read_text())
    opened(data, prepare)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with serving(Settings(data=data, limits={}, public_url=url), told["tokens"], listening) as server:
            yield server


def test_there_is_one_of_every_schema_that_was_released() -> None:
    assert "0001" in [path.stem for path in RELEASES]


def test_an_upgrade_leaves_nothing_for_fsck_and_nothing_to_index(data: Path) -> None:
    async def work(hub: Hub) -> tuple[Any, ...]:
        before = await migrate.current(hub.db)
        await prepare(hub)
        found = [finding async for finding in fsck.check(hub, deep=True)]
        kept = await rows(hub)
        await reindex(hub)
        return before, await migrate.current(hub.db), found, kept, await rows(hub)

    before, after, found, kept, rebuilt = opened(data, work)
    assert before != after and not found
    assert kept and kept == rebuilt


async def rows(hub: Hub) -> list[tuple[Any, ...]]:
    """The index, but for when it was written."""
    columns = [column for column in schema.adapter.c if column.name != "updated"]
    async with hub.db.read() as conn:
        return [tuple(row) for row in await conn.execute(sa.select(*columns).order_by(schema.adapter.c.repo_id))]


def test_what_was_stored_is_still_there(server: HubServer) -> None:
    told = json.loads((server.settings.data / "told.json").read_text())
    with server.client() as alice, server.client(None) as stranger:
        for path, sha256 in told["files"].items():
            answer = alice.get(path, follow_redirects=True).raise_for_status()
            assert hashlib.sha256(answer.content).hexdigest() == sha256, path
        info = stranger.get("/api/models/acme/reviews").raise_for_status().json()
        assert info["sha"] == told["head"]
        assert {item["rfilename"] for item in info["siblings"]} >= {"adapter.safetensors", "notes.txt"}
        assert stranger.get("/api/models/alice/hidden").status_code in (401, 404)
        assert alice.get("/api/models/alice/hidden").json()["private"] is True
        assert stranger.get("/api/models/acme/former", follow_redirects=True).json()["id"] == "acme/present"
        refs = stranger.get("/api/models/acme/reviews/refs", params={"include_prs": 1}).json()
        assert [tag["name"] for tag in refs["tags"]] == ["v1"] and refs["pullRequests"]
        talk = stranger.get("/api/models/acme/reviews/discussions").json()["discussions"]
        assert {item["title"] for item in talk} == {"Add more", "Which seed?"}
        assert "acme/reviews" in stranger.get("/api/v1/adapters", params={"task": "sentiment"}).text


def test_work_goes_on(server: HubServer) -> None:
    with server.client() as alice, server.client("bob") as bob:
        number = next(
            item["num"]
            for item in alice.get("/api/models/acme/reviews/discussions").json()["discussions"]
            if item["isPullRequest"]
        )
        alice.post(f"/api/models/acme/reviews/discussions/{number}/merge", json={}).raise_for_status()
        assert alice.get("/acme/reviews/resolve/main/more.txt", follow_redirects=True).text == "From a stranger.\n"
        seed.commit(alice, "acme/reviews", seed.lines({"later.txt": b"Later.\n"})).raise_for_status()
        seed.push(bob, "bob/new")
        assert bob.get("/api/models/bob/new").json()["id"] == "bob/new"
