"""Does a token do what its role and its scope allow, and nothing else?"""

from __future__ import annotations

import httpx
import pytest

from adapterhub import accounts
from adapterhub.hub import Hub
from adapterhub.settings import MiB
from tests.adapterhub.conftest import HubServer
from tests.adapterhub.protocol.wire import batch, commit, create, file, large, post_commit, send, text

PRIVATE = "alice/private"
SECRET = text(MiB, "secret")


@pytest.fixture(scope="module")
def server(shared_hub_server: HubServer) -> HubServer:
    with shared_hub_server.client() as client:
        create(client, PRIVATE, private=True)
        send(client, PRIVATE, SECRET)
        commit(client, PRIVATE, file("README.md", b"# Hi\n"), large("secret.txt", SECRET))
        client.post(f"/api/models/{PRIVATE}/discussions", json={"title": "Talk"})
        create(client, "alice/public")
        client.post("/api/models/alice/public/discussions", json={"title": "Talk"})
    return shared_hub_server


def writes(client: httpx.Client, repo: str) -> dict[str, httpx.Response]:
    """Every way of changing something of a repository, or beside it."""
    models, (namespace, name) = f"/api/models/{repo}", repo.split("/")
    return {
        "create": client.post("/api/repos/create", json={"name": "new", "organization": namespace}),
        "commit": post_commit(client, repo, file("x.txt", b"x")),
        "pull": post_commit(client, repo, file("x.txt", b"x"), create_pr="1"),
        "preupload": client.post(f"{models}/preupload/main", json={"files": []}),
        "batch": batch(client, repo, b"x"),
        "xet": client.get(f"{models}/xet-write-token/main"),
        "branch": client.post(f"{models}/branch/b"),
        "no branch": client.delete(f"{models}/branch/b"),
        "tag": client.post(f"{models}/tag/main", json={"tag": "t"}),
        "no tag": client.delete(f"{models}/tag/t"),
        "discussion": client.post(f"{models}/discussions", json={"title": "x"}),
        "pull request": client.post(f"{models}/discussions", json={"title": "x", "pullRequest": True}),
        "comment": client.post(f"{models}/discussions/1/comment", json={"comment": "x"}),
        "status": client.post(f"{models}/discussions/1/status", json={"status": "closed"}),
        "merge": client.post(f"{models}/discussions/1/merge"),
        "settings": client.put(f"{models}/settings", json={"private": False}),
        "move": client.post("/api/repos/move", json={"fromRepo": repo, "toRepo": f"{namespace}/moved"}),
        "delete": client.request("DELETE", "/api/repos/delete", json={"name": name, "organization": namespace}),
    }


def audit(server: HubServer) -> int:
    """The number of things that were done."""
    with server.client() as client:
        return len(client.get("/api/v1/audit").text)


def test_a_token_that_reads_writes_nothing(server: HubServer) -> None:
    before = audit(server)
    with server.client("reader") as client:
        assert client.get(f"/{PRIVATE}/resolve/main/README.md").text == "# Hi\n"
        answers = writes(client, PRIVATE)
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 403)
    assert audit(server) == before


def test_nobody_writes_to_a_public_repository(server: HubServer) -> None:
    with server.client(None) as client:
        answers = writes(client, "alice/public")
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 401)


def test_a_stranger_only_proposes_and_talks(server: HubServer) -> None:
    with server.client() as alice, server.client("bob") as bob:
        create(alice, "alice/open")
        alice.post("/api/models/alice/open/discussions", json={"title": "First"})
        answers = writes(bob, "alice/open")
    allowed = {name for name, answer in answers.items() if answer.is_success}
    assert allowed == {"pull", "batch", "xet", "discussion", "pull request", "comment"}
    assert {answer.status_code for name, answer in answers.items() if name not in allowed} == {403}


def scoped(server: HubServer, *scope: str) -> httpx.Client:
    """A client with a token of alice's that is limited."""

    async def make(hub: Hub) -> str:
        async with hub.db.write() as conn:
            alice = (await accounts.find_account(conn, "alice"))["id"]
            return await accounts.create_token(conn, alice, "limited", "write", scope)

    token = server.call(make)
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False)


def test_a_limited_token_changes_nothing_else(server: HubServer) -> None:
    with scoped(server, "acme", "alice/other") as client:
        answers = writes(client, "alice/public")
        assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 403)
        assert client.get(f"/api/models/{PRIVATE}").status_code == 404
        assert PRIVATE not in client.get("/api/models?author=alice").text
        repo = create(client, "acme/scoped")
        # Nor does it reach into what it may not see by a file's hash.
        assert post_commit(client, repo, large("s.txt", SECRET)).status_code == 400
        commit(client, repo, file("a.txt", b"a"))


def test_a_token_for_one_repository(server: HubServer) -> None:
    with server.client() as alice:
        create(alice, "alice/one", private=True)
    with scoped(server, "alice/one") as client:
        commit(client, "alice/one", file("a.txt", b"a"))
        assert client.get("/api/models/alice/one").json()["private"]
        assert post_commit(client, "alice/public", file("a.txt", b"a")).status_code == 403


def test_tokens_end(server: HubServer) -> None:
    async def revoke(hub: Hub) -> None:
        async with hub.db.write() as conn:
            alice = (await accounts.find_account(conn, "alice"))["id"]
            newest = (await accounts.tokens(conn, alice))[0]
            await accounts.revoke_token(conn, alice, newest["id"])

    with scoped(server) as client:
        assert client.get("/api/whoami-v2").status_code == 200
        server.call(revoke)
        answer = client.get("/api/models")
        assert answer.status_code == 401 and answer.headers["x-error-message"].startswith("Invalid credentials")
