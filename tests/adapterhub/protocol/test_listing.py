"""Do lists come whole, in pages, however long they are?"""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest

from adapterhub.settings import MiB
from tests.adapterhub.conftest import HubServer
from tests.adapterhub.protocol.conftest import Program
from tests.adapterhub.protocol.wire import commit, create, file, history, large, send, text

MANY = 5000
DATA = text(MiB)


def pages(client: httpx.Client, address: str, **query: Any) -> list[list[Any]]:
    """All pages of a list, by the links between them."""
    found, answer = [], client.get(address, params=query)
    while True:
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
        if "next" not in answer.links:
            return found
        assert answer.links["next"]["url"].startswith(str(client.base_url))
        answer = client.get(answer.links["next"]["url"])


@pytest.fixture(scope="module")
def large_repo(shared_hub_server: HubServer) -> str:
    """A repository of 5 000 files, all with the same bytes."""
    with shared_hub_server.client() as client:
        repo = create(client, "alice/many")
        send(client, repo, DATA)
        commit(client, repo, *(large(f"folder {i % 10}/{i}.txt", DATA) for i in range(MANY)))
    return repo


@pytest.mark.slow
def test_a_tree_of_5000_files(shared_hub_server: HubServer, large_repo: str) -> None:
    with shared_hub_server.client() as client:
        found = pages(client, f"/api/models/{large_repo}/tree/main", recursive="true")
        folder = pages(client, f"/api/models/{large_repo}/tree/main/folder%203")
        info = client.get(f"/api/models/{large_repo}").json()
    assert [len(page) for page in found] == [1000] * 5 + [11]
    items = [item for page in found for item in page]
    assert len({item["path"] for item in items}) == MANY + 11
    assert [len(page) for page in folder] == [500] and len(info["siblings"]) == MANY + 1
    digests = {item["lfs"]["oid"] for item in items if item["type"] == "file" and "lfs" in item}
    assert digests == {hashlib.sha256(DATA).hexdigest()}


def test_a_page_that_does_not_exist(shared_hub_server: HubServer, large_repo: str) -> None:
    with shared_hub_server.client() as client:
        assert client.get(f"/api/models/{large_repo}/tree/main?cursor=999999").json() == []
        assert client.get(f"/api/models/{large_repo}/tree/main?cursor=-1").status_code == 400
        assert client.get("/api/models?limit=nine").status_code == 400


@pytest.mark.slow
def test_5000_files_from_a_folder(hub_server: HubServer, program: Program) -> None:
    told = program("many.py", hub_server, MANY)
    assert told == {"listed": MANY + 1, "fetched": MANY // 25, "again": True}


def test_lists_of_models(shared_hub_server: HubServer) -> None:
    with shared_hub_server.client("bob") as client:
        names = [create(client, f"bob/list-{i}") for i in range(7)]
        for query in ({}, {"sort": "downloads"}, {"sort": "createdAt"}, {"sort": "lastModified", "full": "True"}):
            found = pages(client, "/api/models", author="bob", limit=3, **query)
            assert [len(page) for page in found] == [3, 3, 1], query
            assert sorted(model["id"] for page in found for model in page) == names
        newest = client.get("/api/models", params={"author": "BOB", "sort": "createdAt", "limit": 1}).json()
        assert [model["id"] for model in newest] == [names[-1]]
        assert client.get("/api/models", params={"author": "bob", "limit": 0}).json() == []


def test_histories(shared_hub_server: HubServer) -> None:
    with shared_hub_server.client() as client:
        repo = create(client, "alice/long")
        made = [commit(client, repo, file("n.txt", str(i).encode()), title=f"{i}") for i in range(5)]
        found = pages(client, f"/api/models/{repo}/commits/main", limit=2)
        assert [len(page) for page in found] == [2, 2, 2]
        assert [row["id"] for page in found for row in page][:-1] == made[::-1]
        assert history(client, repo, made[2]) == [*made[2::-1], history(client, repo)[-1]]
