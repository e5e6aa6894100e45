"""Can a stranger tell a private repository from one that does not exist, by any answer of any route?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.adapterhub.acceptance import seed
from tests.adapterhub.acceptance.routes import Route, is_page, routes
from tests.adapterhub.conftest import HubServer, Makers

# Equally long, so that answers can be compared letter by letter.
HIDDEN, RENAMED, MISSING = "alice/hiddenone", "alice/hiddenold", "alice/absentone"
STRANGERS = (None, "bob")
OF_A_REPO = re.compile(r"/\{namespace\}/\{name\}(?=[/.]|$)")
# Their bodies or queries name the repository.
NAMING: dict[Route, Any] = {
    Route("DELETE", "/api/repos/delete"): {"json": {"name": "NAME", "type": "model"}},
    Route("POST", "/api/repos/move"): {"json": {"fromRepo": "NAME", "toRepo": "bob/mine", "type": "model"}},
    Route("POST", "/api/v1/yank"): {"json": {"id": "NAME", "reason": "out of date"}},
    Route("DELETE", "/api/v1/yank"): {"json": {"id": "NAME", "reason": "out of date"}},
    Route("PUT", "/api/v1/preferred"): {"json": {"id": "NAME"}},
    Route("DELETE", "/api/v1/preferred"): {"json": {"id": "NAME"}},
    Route("POST", "/api/v1/check"): {"json": {"repo": "NAME", "files": []}},
    Route("GET", "/api/v1/resolve"): {"params": {"name": "NAME"}},
    Route("GET", "/api/v1/adapters"): {"params": {"q": "NAME"}},
    Route("GET", "/api/models"): {"params": {"search": "NAME", "full": "1"}},
    Route("GET", "/adapters"): {"params": {"q": "NAME"}},
    Route("GET", "/upload"): {"params": {"repo": "NAME"}},
    Route("GET", "/dist/v2/adapters/{org}/{file}.json"): {},
}
BODIES: dict[str, Any] = {
    "/commit/{revision:path}": {"content": seed.lines({"a.txt": b"a"})},
    "/preupload/{revision:path}": {"json": {"files": [{"path": "a.txt", "size": 1, "sample": "YQ=="}]}},
    "/paths-info/{revision:path}": {"json": {"paths": ["README.md"]}},
    "/objects/batch": {"json": {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1}]}},
    "/objects/verify": {"json": {"oid": "0" * 64, "size": 1}},
    "/tag/{revision:path}": {"json": {"tag": "v1"}},
    "/branch/{revision:path}": {"json": {}},
    "/discussions": {"json": {"title": "a", "description": "b"}},
    "/comment": {"json": {"comment": "a"}},
    "/status": {"json": {"status": "closed"}},
}


@pytest.fixture(scope="module")
def server(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub with a private repository that has been renamed, has a discussion and a pull request."""
    with hub_makers.server(tmp_path_factory.mktemp("hub")) as server:
        with server.client() as alice:
            seed.push(alice, "alice/open-one")
            seed.push(alice, RENAMED, private=True, **{"notes/secret.txt": b"only for alice"})
            alice.post("/api/repos/move", json={"fromRepo": RENAMED, "toRepo": HIDDEN}).raise_for_status()
            talk = {"title": "first", "description": "one"}
            alice.post(f"/api/models/{HIDDEN}/discussions", json=talk).raise_for_status()
            seed.commit(alice, HIDDEN, seed.lines({"b.txt": b"b"}), create_pr="1").raise_for_status()
        yield server


def answer(app: Any, client: httpx.Client, route: Route, name: str, values: dict[str, str]) -> tuple[Any, ...]:
    """All that a stranger sees of an answer, with the repository's name taken out."""
    namespace, _, short = name.partition("/")
    given = NAMING.get(route) or next((body for end, body in BODIES.items() if route.path.endswith(end)), {})
    if route.method not in ("POST", "PUT", "DELETE"):
        given = {key: value for key, value in given.items() if key == "params"}
    given = _put(given, name)
    if route.method == "POST" and "csrf" in values and is_page(app, route):
        given = {"data": {"csrf": values["csrf"], "action": "comment", "title": "a", "body": "b"}}
    known = {"namespace": namespace, "name": short, "org": namespace, "file": short, **values}
    path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: known[match[1]], route.path)
    found = client.request(route.method, path, headers={"Accept": "text/html,application/json"}, **given)
    changing = ("date", "content-length", "set-cookie")
    headers = sorted((key, _without(value, name)) for key, value in found.headers.items() if key not in changing)
    return found.status_code, headers, _without(found.text, name)


def _put(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _put(item, name) for key, item in value.items()}
    return name if value == "NAME" else value


def _without(text: str, name: str) -> str:
    return text.replace(name, "NAME").replace(name.replace("/", "%2F"), "NAME").replace(name.split("/")[1], "SHORT")


def visitor(server: HubServer, name: str | None, values: dict[str, str]) -> httpx.Client:
    """A client with a token for the API and a session for the pages."""
    client = server.client(name)
    values.pop("csrf", None)
    if name:
        browser, values["csrf"] = server.browser(name)
        client.headers["Cookie"] = browser.headers["Cookie"]
    return client


def test_every_route_of_a_repository(server: HubServer) -> None:
    with server.client() as alice:
        head = alice.get(f"/api/models/{HIDDEN}").json()["sha"]
        # What alice finds is not what strangers find, so the comparison below can fail.
        assert alice.get(f"/{HIDDEN}/resolve/main/README.md").is_success
    values = {"path": "README.md", "folder": "notes", "number": "1", "oid": head, "rev": "main"}
    found = routes(server.app)
    tested = [route for route in found if OF_A_REPO.search(route.path) or route in NAMING]
    assert len(tested) > 50
    assert set(NAMING) <= set(found)
    told = []
    for stranger in STRANGERS:
        with visitor(server, stranger, values) as client:
            for route in tested:
                for revision in ("main", head) if "{revision" in route.path else ("main",):
                    known = {**values, "revision": revision}
                    missing = answer(server.app, client, route, MISSING, known)
                    for name in (HIDDEN, RENAMED):
                        if (hidden := answer(server.app, client, route, name, known)) != missing:
                            told.append((stranger, route, name, hidden, missing))
                    if OF_A_REPO.search(route.path) and not 300 <= missing[0] < 500:
                        told.append((stranger, route, MISSING, missing))
    assert not told, "\n".join(map(str, told))


def test_it_stands_in_no_list(server: HubServer) -> None:
    """Nowhere where repositories are counted, listed or searched."""
    whole = re.compile(r"hiddeno|only for alice")
    places = {
        "task": "sentiment",
        "subtask": "sst-2",
        "name": "bert-base-uncased",
        "namespace": "alice",
        "org": "alice",
    }
    places |= {"model_type": "bert", "model": "bert-base-uncased"}
    told = []
    for stranger in STRANGERS:
        with server.client(stranger) as client:
            for route in routes(server.app):
                names = set(re.findall(r"\{(\w+)", route.path))
                if route.method != "GET" or OF_A_REPO.search(route.path) or not names <= places.keys():
                    continue
                path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: places[match[1]], route.path)
                found = client.get(path, headers={"Accept": "text/html"}, follow_redirects=True)
                if found.status_code >= 500 or whole.search(found.text):
                    told.append((stranger, path, found.status_code))
            for query in ("hidden", "secret", "alice"):
                for path in ("/api/v1/adapters?q=", "/api/models?search=", "/adapters?q=", "/api/v1/resolve?name="):
                    if whole.search(client.get(path + query, headers={"Accept": "text/html"}).text):
                        told.append((stranger, path + query))
            total = client.get("/api/v1/adapters").json()
            assert (total["total"], total["facets"]["task"]) == (1, {"sentiment": 1})
    assert not told, "\n".join(map(str, told))


def test_its_bytes_cannot_be_found_or_used(server: HubServer) -> None:
    import hashlib

    secret = hashlib.sha256(b"only for alice").hexdigest()
    with server.client() as alice, server.client("bob") as bob, server.client(None) as anyone:
        assert alice.get(f"/api/v1/by-hash/{secret}").is_success
        for client in (bob, anyone):
            found, missing = (client.get(f"/api/v1/by-hash/{oid}") for oid in (secret, "0" * 64))
            assert (found.status_code, found.text) == (404, missing.text.replace("0" * 64, secret))
        seed.create(bob, "bob/thief")
        steal = b'{"key":"header","value":{"summary":"x"}}\n{"key":"lfsFile","value":{"path":"a.txt","oid":"%s"}}'
        theft = seed.commit(bob, "bob/thief", steal % secret.encode())
        assert theft.status_code == 400 and "were not uploaded" in theft.text
        objects = [{"oid": secret, "size": 14}]
        batch = bob.post("/bob/thief.git/info/lfs/objects/batch", json={"operation": "upload", "objects": objects})
        assert "upload" in batch.json()["objects"][0]["actions"]
