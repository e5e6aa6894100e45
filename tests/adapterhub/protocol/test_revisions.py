"""Is what most requests ask first answered at once as it is the long way, and never with what was true before?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from adapterhub import accounts
from adapterhub.accounts import ANONYMOUS, Principal
from adapterhub.db import schema
from adapterhub.errors import HubError
from adapterhub.hub import Hub
from adapterhub.repos import commits, repos, revisions
from tests.adapterhub.conftest import HubServer, Makers
from tests.adapterhub.protocol.wire import commit, create, file

DATABASES = ("sqlite", "postgres")
REPO, HIDDEN, MOVED = "alice/Seen", "alice/hidden", "alice/old"


@pytest.fixture(scope="module", params=DATABASES)
def server(request: pytest.FixtureRequest, hub_makers: Makers, tmp_path_factory: Any) -> Iterator[HubServer]:
    """A hub with repositories of all kinds: with branches, tags and a pull request, hidden, and renamed."""
    with hub_makers.server(tmp_path_factory.mktemp("hub"), db=request.param) as server:
        with server.client() as client:
            create(client, REPO)
            first = commit(client, REPO, file("a.txt", b"a"))
            client.post(f"/api/models/{REPO}/branch/same", json={}).raise_for_status()
            client.post(f"/api/models/{REPO}/branch/deep%2Fbranch", json={}).raise_for_status()
            commit(client, REPO, file("b.txt", b"b"))
            client.post(f"/api/models/{REPO}/tag/main", json={"tag": "same"}).raise_for_status()
            client.post(f"/api/models/{REPO}/tag/{first}", json={"tag": "v1"}).raise_for_status()
            client.post(f"/api/models/{REPO}/tag/main", json={"tag": first[:9]}).raise_for_status()
            commit(client, REPO, file("c.txt", b"c"), create_pr="1")
            create(client, HIDDEN, private=True)
            create(client, MOVED)
            client.post("/api/repos/move", json={"fromRepo": MOVED, "toRepo": "alice/new"}).raise_for_status()
        yield server


def test_it_is_found_as_it_is_the_long_way(server: HubServer) -> None:
    async def long(hub: Hub, principal: Principal, name: str, revision: str | None) -> Any:
        async with hub.db.read() as conn:
            repo = await repos.find(conn, principal, name)
            return repo, await commits.resolve(conn, repo, repo.default_branch if revision is None else revision)

    async def outcome(coroutine: Any) -> Any:
        try:
            return await coroutine
        except HubError as error:
            return type(error), error.status, error.message, error.headers

    async def check(hub: Hub) -> set[str]:
        async with hub.db.read() as conn:
            oids = (await conn.execute(sa.select(schema.commit.c.oid))).scalars().all()
            alice = await accounts.principal(hub.db, (await accounts.find_account(conn, "alice"))["id"])
            bob = await accounts.principal(hub.db, (await accounts.find_account(conn, "bob"))["id"])
        names = (None, "", "main", "same", "v1", "deep/branch", "refs/heads/same", "refs/tags/v1", "refs/pr/1", "none")
        digits = [digits for oid in oids[:3] for digits in (oid, oid[:9], oid.upper())]
        kinds = set()
        for principal in (alice, bob, ANONYMOUS):
            for name in (REPO, REPO.upper(), HIDDEN, MOVED, "alice/new", "alice/none", "none/none", "alice/%"):
                for revision in (*names, *digits):
                    found = await outcome(revisions.find(hub.db, principal, name, revision))
                    assert found == await outcome(long(hub, principal, name, revision)), (name, revision)
                    kinds.add(type(found[0]).__name__ if len(found) == 2 else found[0].__name__)
        return kinds

    assert server.call(check) == {"Repo", "RepoNotFound", "RevisionNotFound"}


# ---- never what was true before -------------------------------------------------------------------------------------


@pytest.fixture
def repo(server: HubServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """A repository for one test, with the file `a.txt`."""
    with server.client() as client:
        name = create(client, f"alice/{request.node.originalname}")
        commit(client, name, file("a.txt", b"first"))
        yield name


@pytest.fixture
def visitor(server: HubServer) -> Iterator[httpx.Client]:
    with server.client(None) as client:
        yield client


def asked(client: httpx.Client, repo: str, path: str = "a.txt", revision: str = "main") -> list[int]:
    """How a repository, its tree and a file of it are answered for."""
    addresses = (f"/api/models/{repo}", f"/api/models/{repo}/tree/{revision}", f"/{repo}/resolve/{revision}/{path}")
    return [client.get(address).status_code for address in addresses]


def test_a_commit_is_seen_at_once(server: HubServer, repo: str, visitor: httpx.Client) -> None:
    with server.client() as alice:
        for number in range(3):
            body, path = f"number {number}".encode(), f"{number}.txt"
            assert asked(visitor, repo, path) == [200, 200, 404]
            oid = commit(alice, repo, file("a.txt", body), file(path, body))
            info = visitor.get(f"/api/models/{repo}").json()
            assert info["sha"] == oid and {"rfilename": path} in info["siblings"]
            answer = visitor.get(f"/{repo}/resolve/main/a.txt")
            assert answer.content == body and answer.headers["x-repo-commit"] == oid
            assert path in {item["path"] for item in visitor.get(f"/api/models/{repo}/tree/main").json()}


def test_a_branch_that_moves_or_goes_is_seen_at_once(server: HubServer, repo: str, visitor: httpx.Client) -> None:
    with server.client() as alice:
        first = visitor.get(f"/api/models/{repo}").json()["sha"]
        alice.post(f"/api/models/{repo}/branch/b", json={}).raise_for_status()
        second = commit(alice, repo, file("a.txt", b"second"), revision="b")
        assert visitor.get(f"/api/models/{repo}/revision/b").json()["sha"] == second
        assert visitor.get(f"/api/models/{repo}").json()["sha"] == first
        assert visitor.get(f"/{repo}/resolve/{first}/a.txt").content == b"first"
        alice.delete(f"/api/models/{repo}/branch/b").raise_for_status()
        assert asked(visitor, repo, revision="b") == [200, 404, 404]


def test_a_visibility_is_seen_at_once(server: HubServer, repo: str, visitor: httpx.Client) -> None:
    with server.client() as alice, server.client("bob") as bob:
        for private in (True, False, True):
            alice.put(f"/api/models/{repo}/settings", json={"private": private}).raise_for_status()
            assert asked(bob, repo) == ([404] * 3 if private else [200] * 3)
            assert asked(visitor, repo) == ([401] * 3 if private else [200] * 3)
            assert asked(alice, repo) == [200] * 3


def test_a_new_name_is_seen_at_once(server: HubServer, repo: str, visitor: httpx.Client) -> None:
    with server.client() as alice:
        alice.post("/api/repos/move", json={"fromRepo": repo, "toRepo": "alice/renamed"}).raise_for_status()
        for name in (repo, "alice/renamed"):
            assert asked(visitor, name) == [200] * 3
            assert visitor.get(f"/api/models/{name}").json()["id"] == "alice/renamed"
        create(alice, repo)  # the old name is free for its owner, and then means the new repository
        assert visitor.get(f"/api/models/{repo}").json()["id"] == repo
        assert asked(visitor, repo) == [200, 200, 404]


def test_what_others_count_is_seen_at_once(server: HubServer, repo: str, visitor: httpx.Client) -> None:
    async def count(hub: Hub) -> None:
        async with hub.db.write() as conn:
            mine = schema.repo.c.key == repo.lower()
            await conn.execute(sa.update(schema.repo).where(mine).values(likes=7, downloads=8, downloads_all=9))

    visitor.get(f"/api/models/{repo}")
    server.call(count)
    info = visitor.get(f"/api/models/{repo}").json()
    assert (info["likes"], info["downloads"], info["downloadsAllTime"]) == (7, 8, 9)


def test_a_quarantined_file_is_refused_at_once(server: HubServer, repo: str, visitor: httpx.Client) -> None:
    async def quarantine(hub: Hub) -> None:
        async with hub.db.write() as conn:
            await conn.execute(sa.update(schema.blob).where(schema.blob.c.size == 9).values(state="quarantined"))

    with server.client() as alice:
        commit(alice, repo, file("a.txt", b"bad bytes"))
    assert asked(visitor, repo) == [200] * 3
    server.call(quarantine)
    assert asked(visitor, repo) == [200, 200, 403]


def test_a_revoked_token_is_refused_at_once(server: HubServer, repo: str) -> None:
    async def make(hub: Hub) -> str:
        async with hub.db.write() as conn:
            account = await accounts.find_account(conn, "alice")
            return await accounts.create_token(conn, account["id"], "short", "read")

    with server.client() as alice:
        alice.put(f"/api/models/{repo}/settings", json={"private": True}).raise_for_status()
        alice.headers["authorization"] = f"Bearer {server.call(make)}"
        assert asked(alice, repo) == [200] * 3

        async def revoke(hub: Hub) -> None:
            async with hub.db.write() as conn:
                account = await accounts.find_account(conn, "alice")
                newest = (await accounts.tokens(conn, account["id"]))[0]["id"]
                await accounts.revoke_token(conn, account["id"], newest)

        server.call(revoke)
        assert asked(alice, repo) == [401] * 3


def test_a_deleted_repository_is_gone_at_once(server: HubServer, repo: str, visitor: httpx.Client) -> None:
    with server.client() as alice:
        assert asked(visitor, repo) == [200] * 3
        alice.request("DELETE", "/api/repos/delete", json={"name": repo}).raise_for_status()
        assert asked(visitor, repo) == [401] * 3
