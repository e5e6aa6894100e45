"""Is a repository whole from the first moment at which anyone sees it?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from adapterhub import ingest
from adapterhub.changes import committing
from adapterhub.db import schema
from adapterhub.errors import StorageUnavailable
from adapterhub.hub import Hub
from adapterhub.ops import fsck
from tests.adapterhub.conftest import HubServer

CLIENTS = 6


@pytest.mark.parametrize("hub_server", [{}, {"db": "postgres"}], indirect=True, ids=["sqlite", "postgres"])
def test_clients_that_make_the_same_one_at_once_all_find_it_whole(hub_server: HubServer) -> None:
    def make(_: int) -> list[int]:
        with hub_server.client() as client:
            seen = []
            for number in range(4):
                made = client.post("/api/repos/create", json={"name": f"alice/same-{number}"})
                if made.status_code == 409:
                    assert made.json()["url"].endswith(f"/alice/same-{number}")
                seen += [made.status_code, client.get(f"/api/models/alice/same-{number}/tree/main").status_code]
                body = b'{"key":"header","value":{"summary":"x"}}\n'
                body += b'{"key":"file","value":{"path":"a.txt","content":"YQ==","encoding":"base64"}}'
                seen.append(client.post(f"/api/models/alice/same-{number}/commit/main", content=body).status_code)
            return seen

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(make, range(CLIENTS)))
    for number in range(4):
        creations, trees, made = ([answer[3 * number + part] for answer in answers] for part in range(3))
        assert sorted(creations) == [200] + [409] * (CLIENTS - 1)
        assert trees == made == [200] * CLIENTS


async def _findings(hub: Hub) -> list[str]:
    return [str(finding) async for finding in fsck.check(hub, deep=True)]


@pytest.mark.parametrize(("module", "function"), [(ingest, "_note"), (committing, "_store")], ids=["bytes", "rows"])
def test_a_creation_that_fails_leaves_nothing(
    hub_server: HubServer, monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise StorageUnavailable("The disk is away.")

    monkeypatch.setattr(module, function, fail)
    with hub_server.client() as client:
        assert client.post("/api/repos/create", json={"name": "alice/new"}).status_code == 503
        assert client.get("/api/models/alice/new").status_code == 404
        assert not [*(hub_server.settings.data / "tmp").iterdir()]
        assert hub_server.call(_findings) == []
        monkeypatch.undo()
        assert client.post("/api/repos/create", json={"name": "alice/new"}).status_code == 200
        assert client.get("/alice/new/resolve/main/.gitattributes").status_code == 200
    assert not [*(hub_server.settings.data / "tmp").iterdir()]


@pytest.mark.parametrize("hub_server", [{}, {"blobs": "s3"}], indirect=True, ids=["disk", "s3"])
def test_the_bytes_of_a_first_commit_are_stored_once(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = []
    stage_bytes = ingest.stage_bytes

    async def counted(*args: Any, **options: Any) -> Any:
        staged.append(options["name"])
        return await stage_bytes(*args, **options)

    monkeypatch.setattr(ingest, "stage_bytes", counted)
    with hub_server.client() as client:
        for name, status in (("one", 200), ("two", 200), ("one", 409), ("One", 409)):
            made = client.post("/api/repos/create", json={"name": f"alice/{name}"})
            assert made.status_code == status
        assert made.json()["url"].endswith("/alice/one")
        assert staged == [".gitattributes"]
        assert client.get("/alice/two/resolve/main/.gitattributes").status_code == 200
    assert hub_server.call(_findings) == []


@pytest.mark.parametrize("state", ["missing", "pending"])
def test_bytes_that_are_being_collected_or_came_by_half_are_stored_anew(hub_server: HubServer, state: str) -> None:
    async def condemn(hub: Hub) -> None:
        async with hub.db.write() as conn:
            assert (await conn.execute(sa.update(schema.blob).values(state=state))).rowcount == 1

    with hub_server.client() as client:
        assert client.post("/api/repos/create", json={"name": "alice/one"}).status_code == 200
        hub_server.call(condemn)
        assert client.post("/api/repos/create", json={"name": "alice/two"}).status_code == 200
        assert client.get("/alice/two/resolve/main/.gitattributes").status_code == 200
    assert hub_server.call(_findings) == []
