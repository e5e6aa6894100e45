"""Collections: who may change them, and what others see of them."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from adapterhub.hub import Hub
from tests.adapterhub.conftest import HubServer

from .files import adapter, push

BEST = "/collections/acme/Best-ones"


async def fill(hub: Hub) -> None:
    await push(hub, "acme/sst.two", adapter())
    await push(hub, "bob/sst.two", adapter(config="lora"), user="bob")
    await push(hub, "acme/hidden", adapter(fill=b"\1\1\1\1"), private=True)


@pytest.fixture(params=[{}, {"db": "postgres"}], ids=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, start_hub: Any) -> HubServer:
    server: HubServer = start_hub(**request.param)
    server.call(fill)
    return server


def call(server: HubServer, verb: str, path: str, user: str | None = None, body: Any = None) -> tuple[int, Any]:
    with server.client(user) as client:
        answer = client.request(verb, f"/api/v1{path}", json=body)
    return answer.status_code, answer.json() if answer.content else None


def test_a_collection_from_beginning_to_end(server: HubServer) -> None:
    body = {
        "title": "The best",
        "note": "So far.",
        "setup": "Stack",
        "items": ["bob/sst.two", "ACME/sst.two", "acme/hidden"],
    }
    for user, status in ((None, 401), ("reader", 403), ("bob", 403), ("alice", 204)):
        assert call(server, "PUT", BEST, user, body)[0] == status
    status, found = call(server, "GET", "/collections/ACME/best-ONES")
    assert status == 200
    assert {key: found[key] for key in ("namespace", "name", "title", "note", "setup")} == {
        "namespace": "acme",
        "name": "Best-ones",
        **{key: body[key] for key in ("title", "note", "setup")},
    }
    assert [row["id"] for row in found["adapters"]] == ["bob/sst.two", "acme/sst.two"]
    assert [row["id"] for row in call(server, "GET", BEST, "alice")[1]["adapters"]][2:] == ["acme/hidden"]
    calls = [node for node in ast.walk(ast.parse(found["code"])) if isinstance(node, ast.Call)]
    loaded = [
        (ast.literal_eval(node.args[0]), ast.literal_eval(node.keywords[0].value))
        for node in calls
        if isinstance(node.func, ast.Attribute) and node.func.attr == "load_adapter"
    ]
    assert loaded == [("bob/sst.two", "sst-two"), ("acme/sst.two", "acme-sst-two")]
    assert "Stack(*names)" in found["code"] and "hidden" not in found["code"]

    assert call(server, "PUT", BEST, "alice", {"items": ["acme/sst.two"]})[0] == 204
    _, found = call(server, "GET", BEST)
    assert (found["title"], found["note"], [row["id"] for row in found["adapters"]]) == (
        "Best-ones",
        "",
        ["acme/sst.two"],
    )
    assert [row["name"] for row in call(server, "GET", "/collections?namespace=acme")[1]] == ["Best-ones"]
    assert call(server, "GET", "/collections?namespace=bob")[1] == []
    assert call(server, "DELETE", BEST, "bob")[0] == 403
    assert call(server, "DELETE", BEST, "alice")[0] == 204
    assert call(server, "GET", BEST)[0] == call(server, "DELETE", BEST, "alice")[0] == 404


def test_what_is_none_is_refused_and_changes_nothing(server: HubServer) -> None:
    assert call(server, "PUT", BEST, "alice", {"items": ["acme/sst.two"]})[0] == 204
    before = call(server, "GET", BEST)
    for body, status in (
        ({"items": []}, 422),
        ({"items": ["acme/sst.two"], "setup": "Fuse"}, 422),
        ({"items": ["acme/nothing"]}, 404),
        ({"items": ["no-name"]}, 422),
        ({"items": ["acme/sst.two"] * 51}, 422),
    ):
        assert call(server, "PUT", BEST, "alice", body)[0] == status, body
    assert call(server, "PUT", "/collections/bob/x", "bob", {"items": ["acme/hidden"]})[0] == 404
    assert call(server, "PUT", "/collections/nobody/x", "bob", {"items": ["acme/sst.two"]})[0] in (403, 404)
    assert call(server, "GET", BEST) == before


def test_the_pages(server: HubServer) -> None:
    browser, csrf = server.browser("bob")
    form = {"csrf": csrf, "namespace": "bob", "name": "mine", "title": "Mine", "items": "acme/sst.two\nbob/sst.two"}
    with browser:
        assert browser.post("/collections", data={**form, "namespace": "acme"}).status_code == 403
        answer = browser.post("/collections", data=form)
        assert (answer.status_code, answer.headers["location"]) == (303, "/collections/bob/mine")
        page = browser.get("/collections/bob/mine").text
        assert page.index('href="/acme/sst.two"') < page.index('href="/bob/sst.two"')
        assert "Mine" in browser.get("/collections").text
        assert ">acme/sst.two\nbob/sst.two\n</textarea>" in browser.get("/collections/new?edit=bob/mine").text
        assert browser.post("/collections", data={**form, "action": "delete"}).status_code == 303
        assert browser.get("/collections/bob/mine").status_code == 404
