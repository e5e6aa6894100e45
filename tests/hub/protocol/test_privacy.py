"""Is a private repository, for those who may not see it, like one that does not exist? On every address there is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from adapterhub import accounts
from adapterhub.hub import Hub
from adapterhub.settings import MiB
from tests.hub.conftest import HubServer
from tests.hub.protocol.wire import batch, commit, create, file, large, post_commit, send, text

PRIVATE, MISSING = "alice/hushhush", "alice/nowhere1"  # names of one length, which stand nowhere else
SECRET = text(MiB, "secret")


def routes(router: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Methods and paths of all routes, those of included routers too."""
    for route in router.routes:
        if hasattr(route, "original_router"):
            yield from routes(route.original_router, prefix + route.include_context.prefix)
        elif getattr(route, "methods", None):
            yield from ((method, prefix + route.path) for method in sorted(route.methods))


@pytest.fixture(scope="module")
def server(shared_hub_server: HubServer) -> HubServer:
    with shared_hub_server.client() as client:
        create(client, PRIVATE, private=True)
        send(client, PRIVATE, SECRET)
        commit(client, PRIVATE, file("README.md", b"# Hi\n"), file("docs/x.txt", b"x"), large("secret.txt", SECRET))
        client.post(f"/api/models/{PRIVATE}/tag/main", json={"tag": "v1"})
        client.post(f"/api/models/{PRIVATE}/discussions", json={"title": "Talk"})
        create(client, "alice/public")
    return shared_hub_server


VALUES = {
    "revision": "main",
    "rev": "main",
    "path": "README.md",
    "folder": "",
    "number": "1",
    "oid": "0" * 40,
}
BODIES = {
    "discussions": {"title": "x"},
    "comment": {"comment": "x"},
    "status": {"status": "closed"},
    "tag": {"tag": "v2"},
    "settings": {"private": False},
    "preupload": {"files": []},
    "batch": {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 5}]},
    "verify": {"oid": "0" * 64, "size": 5},
}


def ask(client: httpx.Client, method: str, route: str, repo: str, accept: str) -> tuple[Any, ...]:
    """An answer, without what is of the moment, and with the repository's name taken out."""
    namespace, name = repo.split("/")
    values = {**VALUES, "namespace": namespace, "name": name}
    if "/tree/" in route:
        values["path"] = values["folder"] = "docs"
    path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: values[match[1]], route)
    kind = next((part for part in reversed(route.split("/")) if part in BODIES), "")
    answer = client.request(method, path, json=BODIES.get(kind), headers={"Accept": accept})
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "content-length")}
    return answer.status_code, *(shown.replace(name, "…") for shown in (answer.text, str(headers)))


def difference(one: tuple[Any, ...], other: tuple[Any, ...]) -> list[str]:
    """The lines in which two answers differ."""
    lines = [[line for part in answer for line in str(part).splitlines()] for answer in (one, other)]
    return [line for line in difflib.unified_diff(*lines, lineterm="", n=0) if line[0] in "+-"]


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
@pytest.mark.parametrize("who", ["bob", None])
def test_private_is_like_missing_on_every_route(server: HubServer, who: str | None, accept: str) -> None:
    found = [(method, path) for method, path in routes(server.app) if "{namespace}/{name}" in path]
    assert len(found) > 40 and any(path.startswith("/api/v1/") for _, path in found)
    with server.client(who) as client:
        for method, path in found:
            private, missing = (ask(client, method, path, repo, accept) for repo in (PRIVATE, MISSING))
            assert difference(private, missing) == [], f"{method} {path}"
            assert private[0] in (401, 404, 303), f"{method} {path}: {private[0]}"


def test_its_owner_sees_it_on_every_route(server: HubServer) -> None:
    """Else the test above could pass because nothing works."""
    with server.client() as client:
        for method, path in routes(server.app):
            if "{namespace}/{name}" in path and method == "GET":
                answer = ask(client, method, path, PRIVATE, "application/json")
                assert answer[0] in (200, 303, 403) or "oid" in path, f"{method} {path}: {answer}"


@pytest.mark.parametrize("who", ["bob", None])
def test_lists_and_creation_do_not_tell(server: HubServer, who: str | None) -> None:
    with server.client(who) as client:
        for path in ("/api/models", "/api/models?author=alice", "/api/models?search=hushhush", "/alice", "/adapters"):
            assert PRIVATE not in client.get(path).text, path
        bodies: tuple[Any, ...] = (
            ("POST", "/api/repos/create", lambda repo: {"name": repo.split("/")[1], "organization": "alice"}),
            ("DELETE", "/api/repos/delete", lambda repo: {"name": repo.split("/")[1], "organization": "alice"}),
            ("POST", "/api/repos/move", lambda repo: {"fromRepo": repo, "toRepo": "bob/mine"}),
            ("POST", "/api/repos/move", lambda repo: {"fromRepo": "alice/public", "toRepo": repo}),
        )
        for method, path, body in bodies:
            answers = [client.request(method, path, json=body(repo)) for repo in (PRIVATE, MISSING)]
            told = [
                (answer.status_code, answer.text.replace(repo, "…"))
                for answer, repo in zip(answers, (PRIVATE, MISSING))
            ]
            assert told[0] == told[1] and told[0][0] >= 400, (path, told)


# ---- tokens ---------------------------------------------------------------------------------------------------------


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
