"""Yanking, preferring, organisations, tokens, quotas and the log, through the API."""

from __future__ import annotations

from typing import Any

import pytest

from .files import adapter, push

Get = Any


def found_by_name(get: Get, name: str = "sst-2") -> set[str]:
    status, body = get("/resolve", name=name, model="bert-base-uncased")
    return {body["id"], *(other["id"] for other in body["others"])} if status == 200 else set()


def test_yank_a_repository_and_take_it_back(get: Get, heads: dict[str, str]) -> None:
    body = {"id": "acme/sst-lora", "revision": None, "reason": "Trained on the test set."}
    assert get("/yank", verb="POST", body=body)[0] == 401
    assert get("/yank", user="bob", verb="POST", body=body)[0] == 403
    assert get("/yank", user="reader", verb="POST", body=body)[0] == 403
    assert get("/yank", user="alice", verb="POST", body=body)[0] == 204
    assert found_by_name(get) == {"acme/sst"}
    listed = {row["id"] for row in get("/adapters")[1]["adapters"]}
    assert "acme/sst-lora" not in listed and "acme/sst" in listed
    assert get("/adapters/acme/sst-lora")[1]["yanked"] == "Trained on the test set."
    exact = get("/resolve", name=f"acme/sst-lora@{heads['acme/sst-lora']}")
    assert exact[0] == 200
    assert get("/yank", user="alice", verb="DELETE", id="acme/sst-lora")[0] == 204
    assert found_by_name(get) == {"acme/sst", "acme/sst-lora"}


def test_yank_a_revision(get: Get, heads: dict[str, str]) -> None:
    old = heads["acme/sst"]
    body = {"id": "acme/sst", "revision": old[:12], "reason": "Broken."}
    assert get("/yank", user="alice", verb="POST", body=body)[0] == 204
    assert found_by_name(get) == {"acme/sst-lora"}
    assert get("/yank", user="alice", verb="DELETE", id="acme/sst", revision=old)[0] == 204
    assert found_by_name(get) == {"acme/sst", "acme/sst-lora"}
    assert get("/yank", user="alice", verb="POST", body={**body, "revision": "never"})[0] == 404


def test_pages_and_clients_are_told(shared_hub_server: Any, get: Get, heads: dict[str, str]) -> None:
    """Of the repository, and of one revision of it, which may be that of `main`."""
    with shared_hub_server.client() as client:

        def told(path: str) -> tuple[Any, bool]:
            page = client.get(f"/acme/sst{path.replace('@', '?revision=')}", headers={"Accept": "text/html"}).text
            found = client.get(f"/api/models/acme/sst{path.replace('@', '/revision/')}").json()
            return found.get("yanked"), "<b>Yanked:</b> Broken." in page

        head = heads["acme/sst"]
        for revision in (None, "main"):
            assert told("") == told(f"@{head}") == (None, False)
            body = {"id": "acme/sst", "revision": revision, "reason": "Broken."}
            assert get("/yank", user="alice", verb="POST", body=body)[0] == 204
            assert told("") == told(f"@{head}") == ("Broken.", True)
            query = {"revision": revision} if revision else {}
            assert get("/yank", user="alice", verb="DELETE", id="acme/sst", **query)[0] == 204


def test_a_private_one_stays_hidden_when_a_yank_is_taken_back(get: Get) -> None:
    body = {"id": "acme/secret", "reason": "Not now."}
    assert get("/yank", user="bob", verb="POST", body=body)[0] == 404
    assert get("/yank", user="alice", verb="POST", body=body)[0] == 204
    assert get("/yank", user="alice", verb="DELETE", id="acme/secret")[0] == 204
    assert "acme/secret" not in {row["id"] for row in get("/adapters")[1]["adapters"]}


def test_a_new_commit_on_a_yanked_one_is_seen(get: Get, shared_hub_server: Any, heads: dict[str, str]) -> None:
    body = {"id": "bob/sst", "revision": "main", "reason": "Broken."}
    assert get("/yank", user="bob", verb="POST", body=body)[0] == 204
    assert get("/resolve", name="sst-2", model="roberta-base")[0] == 404
    files = adapter(model="roberta-base", front="language: en\n")
    shared_hub_server.call(lambda hub: push(hub, "bob/sst", files, user="bob"))
    assert get("/resolve", name="sst-2", model="roberta-base")[1]["id"] == "bob/sst"


def test_prefer(get: Get) -> None:
    assert get("/preferred", user="bob", verb="PUT", body={"id": "acme/sst"})[0] == 403
    assert get("/preferred", user="alice", verb="PUT", body={"id": "acme/sst"})[0] == 204
    found = get("/resolve", name="sst-2", model="bert-base-uncased")[1]
    assert (found["id"], found["reason"]) == ("acme/sst", "preferred")
    assert get("/preferred", user="alice", verb="DELETE", id="acme/sst")[0] == 204
    assert get("/resolve", name="sst-2", model="bert-base-uncased")[1]["reason"] == "score"


# ---- accounts -------------------------------------------------------------------------------------------------------


def test_organisations(get: Get) -> None:
    body = {"name": "team", "fullname": "The Team"}
    assert get("/orgs", verb="POST", body=body)[0] == 401
    assert get("/orgs", user="bob", verb="POST", body=body)[0] == 201
    assert get("/orgs", user="bob", verb="POST", body={"name": "TEAM"})[0] == 409
    assert get("/orgs", user="bob", verb="POST", body={"name": "login"})[0] == 400
    assert {"team", "acme"} <= {org["name"] for org in get("/orgs")[1]}
    assert get("/orgs", after="acme", limit=1)[1][0]["name"] == "team"
    assert get("/orgs/team")[1]["members"] == []
    assert get("/orgs/team", user="bob")[1]["members"] == [{"name": "bob", "role": "admin"}]
    assert get("/orgs/bob")[0] == 404


def test_members(get: Get) -> None:
    assert get("/orgs", user="alice", verb="POST", body={"name": "crew"})[0] == 201
    member = "/orgs/crew/members/bob"
    assert get(member, user="bob", verb="PUT", body={"role": "admin"}, sure=True)[0] == 403
    assert get(member, user="alice", verb="PUT", body={"role": "boss"}, sure=True)[0] == 422
    assert get(member, user="alice", verb="PUT", body={"role": "write"})[0] == 403  # without the password
    assert get(member, user="alice", verb="PUT", body={"role": "write"}, sure=True)[0] == 204
    assert {"name": "bob", "role": "write"} in get("/orgs/crew", user="bob")[1]["members"]
    assert get("/orgs/crew/members/alice", user="bob", verb="DELETE", sure=True)[0] == 403
    assert get("/orgs/crew/members/alice", user="alice", verb="DELETE")[0] == 409  # no password, but the last admin
    assert get(member, user="alice", verb="DELETE")[0] == 403  # who removes others needs it
    assert get(member, user="reader", verb="DELETE")[0] == 403  # and a token that may write
    assert get(member, user="bob", verb="DELETE")[0] == 204  # everyone may leave, without a password
    assert get("/orgs/crew/members/alice", user="alice", verb="DELETE", sure=True)[0] == 409  # but not the last admin


def test_tokens(get: Get, shared_hub_server: Any) -> None:
    body = {"name": "ci", "role": "write", "scope": ["acme/sst"], "days": 7}
    assert get("/tokens", user="reader", verb="POST", body=body)[0] == 403
    assert get("/tokens", user="alice", verb="POST", body=body)[0] == 403  # who finds a token finds no password
    status, made = get("/tokens", user="alice", verb="POST", body=body, sure=True)
    assert status == 201 and made["token"].startswith("ahb_")
    listed = get("/tokens", user="alice")[1][0]
    assert (listed["name"], listed["scope"], listed["expires"] is None) == ("ci", ["acme/sst"], False)
    assert made["token"] not in str(listed)
    shared_hub_server.tokens["ci"] = made["token"]
    # A token with some of the rights cannot make one with all of them.
    assert get("/tokens", user="ci", verb="POST", body={"name": "more", "role": "write"}, sure=True)[0] == 403
    yank = {"id": "acme/sst-lora", "reason": "No."}
    assert get("/yank", user="ci", verb="POST", body=yank)[0] == 403
    assert get(f"/tokens/{listed['id']}", user="bob", verb="DELETE")[0] == 404
    assert get(f"/tokens/{listed['id']}", user="alice", verb="DELETE")[0] == 204
    assert get("/tokens", user="ci")[0] == 401
    assert get("/tokens", user="alice", verb="POST", body={"name": "x", "scope": ["../x"]}, sure=True)[0] == 400


def test_quotas(get: Get) -> None:
    status, found = get("/usage/acme", user="alice")
    assert status == 200 and found["bytes"] > 3 * 64 * 768 and found["quota"] > found["bytes"]
    assert get("/usage/acme", user="bob")[0] == 403
    assert get("/usage/bob", user="bob", verb="PUT", body={"quota": 5}, sure=True)[0] == 403
    assert get("/usage/bob", user="alice", verb="PUT", body={"quota": 5})[0] == 403
    assert get("/usage/bob", user="alice", verb="PUT", body={"quota": 5}, sure=True)[0] == 204
    assert get("/usage/bob", user="bob")[1]["quota"] == 5
    assert get("/usage/bob", user="alice", verb="PUT", body={"quota": None}, sure=True)[0] == 204


def test_the_log(get: Get) -> None:
    assert get("/audit")[0] == 401
    assert get("/audit", user="bob")[0] == 403
    assert get("/orgs", user="alice", verb="POST", body={"name": "logged"})[0] == 201
    newest, *_ = rows = get("/audit", user="alice")[1]
    assert (newest["actor"], newest["action"], newest["target"]) == ("alice", "org.create", "logged")
    assert get("/audit", user="alice", before=newest["id"], limit=1)[1] == [rows[1]]
    assert {row["action"] for row in get("/audit", user="alice", action="org.create")[1]} == {"org.create"}


@pytest.mark.parametrize("body", [{"id": "acme/sst"}, {"id": "sst", "reason": "Why not."}, {"id": "a/b", "reason": 1}])
def test_bodies_are_checked(get: Get, body: Any) -> None:
    assert get("/yank", user="alice", verb="POST", body=body)[0] == 422


def test_large_bodies_are_refused(shared_hub_server: Any) -> None:
    with shared_hub_server.client() as client:
        answer = client.post("/api/v1/orgs", content=b"[" + b" " * (33 << 20) + b"]")
    assert answer.status_code == 413
