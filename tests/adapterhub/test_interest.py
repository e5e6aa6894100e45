"""Likes, what trends, and what people watch."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from huggingface_hub import HfApi, constants

from adapterhub.db import schema
from adapterhub.db.schema import now
from adapterhub.hub import Hub
from adapterhub.interest import LIKE
from adapterhub.ops import downloads
from tests.adapterhub.api.files import adapter, push
from tests.adapterhub.conftest import HubServer

pytestmark = pytest.mark.parametrize("hub_server", [{}, {"db": "postgres"}], indirect=True, ids=["sqlite", "postgres"])


async def fill(hub: Hub) -> None:
    await push(hub, "acme/sst", adapter())
    await push(hub, "acme/nli", adapter(task="nli/rte"))
    await push(hub, "bob/swahili", adapter(task="sw/wiki"), user="bob")
    await push(hub, "bob/many", adapter(task="qa/squad1", front="language: [en, sw]\n"), user="bob")
    await push(hub, "acme/hidden", adapter(task="nli/rte", fill=b"\1\1\1\1"), private=True)


def names(page: str, *of: str) -> list[str]:
    return [name for name in of if f'href="/{name}"' in page]


def test_likes_count_once_each_and_are_taken_back(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_server.call(fill)
    with hub_server.client("bob") as bob, hub_server.client("reader") as reader, hub_server.client(None) as nobody:
        for client, status in ((bob, 200), (bob, 200), (reader, 403), (nobody, 401)):
            assert client.post("/api/models/acme/sst/like").status_code == status
        assert bob.post("/api/models/acme/hidden/like").status_code == 404
        assert bob.post("/api/models/bob/many/like").status_code == 200
        assert nobody.get("/api/models/acme/sst").json()["likes"] == 1
        assert [row["repo"]["name"] for row in nobody.get("/api/users/bob/likes").json()] == ["bob/many", "acme/sst"]
        most = nobody.get("/api/models?sort=likes&direction=-1&limit=2").json()
        assert {row["id"] for row in most} == {"bob/many", "acme/sst"}
        assert HfApi(hub_server.url, hub_server.token("bob")).list_liked_repos("bob").models == ["bob/many", "acme/sst"]
        HfApi(hub_server.url, hub_server.token("bob")).unlike("acme/sst")
        assert nobody.get("/api/models/acme/sst").json()["likes"] == 0
        assert nobody.get("/api/users/nobody/likes").status_code == 404


def test_who_likes_what_is_hidden_is_not_told_to_others(hub_server: HubServer) -> None:
    hub_server.call(fill)
    with hub_server.client("alice") as alice, hub_server.client("bob") as bob:
        assert alice.post("/api/models/acme/hidden/like").status_code == 200
        assert bob.get("/api/users/alice/likes").json() == []


def test_the_button(hub_server: HubServer) -> None:
    hub_server.call(fill)
    browser, csrf = hub_server.browser("bob")
    with browser:
        assert browser.post("/acme/sst/like", data={"csrf": "forged"}).status_code == 403
        for action, likes in (("like", 1), ("like", 1), ("unlike", 0)):
            answer = browser.post("/acme/sst/like", data={"csrf": csrf, "action": action})
            assert (answer.status_code, answer.headers["location"]) == (303, "/acme/sst")
            assert f"</span> {likes}</button>" in browser.get("/acme/sst").text


def test_what_was_used_and_liked_this_week_trends(hub_server: HubServer) -> None:
    hub_server.call(fill)

    async def use(hub: Hub) -> None:
        today = now().date()
        repo, account = schema.repo.c, schema.account.c
        async with hub.db.write() as conn:
            ids = dict((await conn.execute(sa.select(repo.name, repo.id))).all())
            days = [("sst", 20, 500), ("nli", 2, 11), ("swahili", 1, 3)]
            for name, ago, count in days:
                day = {"repo_id": ids[name], "day": today - timedelta(days=ago), "count": count}
                await conn.execute(sa.insert(schema.download_day).values(**day))
            bob = (await conn.execute(sa.select(account.id).where(account.name == "bob"))).scalar_one()
            for name, ago in (("swahili", 1), ("sst", 30)):
                liked = {"account_id": bob, "repo_id": ids[name], "created": now() - timedelta(days=ago)}
                await conn.execute(sa.insert(schema.liking).values(**liked))
        await downloads.roll_up(hub)

    hub_server.call(use)
    with hub_server.client(None) as client:
        found = client.get("/api/v1/adapters", params={"sort": "trending"}).json()["adapters"]
        assert [row["id"] for row in found[:2]] == ["bob/swahili", "acme/nli"]
        assert client.get("/api/v1/adapters", params={"sort": "downloads"}).json()["adapters"][0]["id"] == "acme/sst"
        assert client.get("/api/models?sort=trendingScore&limit=1").json()[0]["id"] == "bob/swahili"
        assert client.get("/adapters?sort=trending").status_code == 200

    async def trends(hub: Hub) -> Any:
        async with hub.db.read() as conn:
            return dict((await conn.execute(sa.select(schema.repo.c.name, schema.repo.c.trending))).all())

    assert hub_server.call(trends) == {"sst": 0, "nli": 11, "swahili": 3 + LIKE, "many": 0, "hidden": 0}

    async def again(hub: Hub) -> Any:
        await push(hub, "bob/swahili", {"b.txt": b"b"}, user="bob")
        async with hub.db.read() as conn:
            return (await conn.execute(sa.select(sa.func.max(schema.adapter.c.trending)))).scalar_one()

    assert hub_server.call(again) == 3 + LIKE


def test_watching(hub_server: HubServer) -> None:
    hub_server.call(fill)
    every = ("acme/sst", "acme/nli", "bob/swahili", "bob/many", "acme/hidden")
    browser, csrf = hub_server.browser("bob")
    with browser:
        assert "You watch nothing yet" in browser.get("/watching").text
        for kind, target, shown in (
            ("task", "nli", {"acme/nli"}),
            ("task", "sw", {"acme/nli", "bob/swahili", "bob/many"}),
            ("owner", "ACME", {"acme/nli", "bob/swahili", "bob/many", "acme/sst"}),
            ("owner", "acme", {"acme/nli", "bob/swahili", "bob/many", "acme/sst"}),
        ):
            answer = browser.post("/watching", data={"csrf": csrf, "kind": kind, "target": target, "action": "watch"})
            assert answer.status_code == 303
            assert set(names(browser.get("/watching").text, *every)) == shown
        assert "Stop watching" in browser.get("/acme").text and "Stop watching" in browser.get("/explore/sw").text
        assert "Stop watching" not in browser.get("/explore/qa").text
        for kind, target in (("task", "sw"), ("owner", "acme")):
            browser.post("/watching", data={"csrf": csrf, "kind": kind, "target": target, "action": "unwatch"})
        assert names(browser.get("/watching").text, *every) == ["acme/nli"]
        for kind, target, status in (("x", "nli", 400), ("task", "nothing", 400), ("owner", "nobody", 404)):
            answer = browser.post("/watching", data={"csrf": csrf, "kind": kind, "target": target, "action": "watch"})
            assert answer.status_code == status


def test_feeds_of_tasks_languages_and_owners(hub_server: HubServer) -> None:
    hub_server.call(fill)
    atom = "{http://www.w3.org/2005/Atom}"
    with hub_server.client(None) as client:
        for query, expected in (
            ("", {"acme/sst", "acme/nli", "bob/swahili", "bob/many"}),
            ("?task=nli", {"acme/nli"}),
            ("?language=sw", {"bob/many"}),
            ("?namespace=bob&task=qa", {"bob/many"}),
        ):
            answer = client.get(f"/atom.xml{query}")
            feed = ET.fromstring(answer.text)
            assert {entry.findtext(f"{atom}title") for entry in feed.iter(f"{atom}entry")} == expected
            (own,) = (link.get("href") for link in feed.findall(f"{atom}link") if link.get("rel") == "self")
            assert own == f"{hub_server.url}/atom.xml{query}"
