"""Are secrets kept nowhere, pages shut to other sites, and those who ask too often told when to come back?"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.adapterhub.acceptance import seed
from tests.adapterhub.acceptance.process import HubProcess, running
from tests.adapterhub.acceptance.routes import routes
from tests.adapterhub.conftest import PASSWORD, HubServer, Makers

PLACES = {
    "namespace": "acme",
    "name": "reviews",
    "revision": "main",
    "rev": "main",
    "path": "README.md",
    "folder": "notes",
    "number": "1",
    "task": "sentiment",
    "subtask": "sst-2",
    "model_type": "bert",
    "model": "bert-base-uncased",
    "org": "acme",
    "file": "reviews",
    "sha256": "0" * 64,
    "key": "none",
}


@pytest.fixture(scope="module")
def server(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with hub_makers.server(tmp_path_factory.mktemp("hub")) as server:
        with server.client() as alice:
            seed.push(alice, "acme/reviews", **{"notes/page.html": b"<script>alert(1)</script>", "notes/run.js": b"1"})
            talk = {"title": "first", "description": "<script>alert(1)</script>"}
            alice.post("/api/models/acme/reviews/discussions", json=talk).raise_for_status()
        yield server


def pages(server: HubServer, client: httpx.Client) -> Iterator[httpx.Response]:
    """The answer of every address that a browser can open."""
    head = client.get("/api/models/acme/reviews").json()["sha"]
    for route in routes(server.app):
        names = set(re.findall(r"\{(\w+)", route.path))
        if route.method == "GET" and names <= PLACES.keys() | {"oid"}:
            values = {**PLACES, "oid": head}
            if route.path.startswith("/explore/{name}"):
                values["name"] = "text_task"
            path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda match, values=values: values[match[1]], route.path)
            yield client.get(path, headers={"Accept": "text/html"})


@pytest.mark.parametrize("who", [None, "alice"])
def test_no_page_lets_anything_of_other_sites_in(server: HubServer, who: str | None) -> None:
    seen = 0
    with server.browser(who)[0] if who else server.client(None) as client:
        for page in pages(server, client):
            policy = page.headers["content-security-policy"]
            assert page.status_code < 500, page.url
            assert page.headers["x-content-type-options"] == "nosniff", page.url
            assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "*" not in policy, page.url
            if page.headers.get("content-type", "").startswith("text/html"):
                seen += 1
                assert "frame-ancestors 'none'" in policy and "referrer-policy" in page.headers
                assert "<script>alert" not in page.text, page.url
                # Links may lead elsewhere; nothing is loaded from there, or runs in the page.
                assert not re.search(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//", page.text)
                assert not re.search(r"<[^>]+\son\w+=|javascript:", page.text), page.url
                assert not re.search(r"<script(?![^>]*\ssrc=)[^>]*>\s*[^<\s]", page.text), page.url
    assert seen > 25


@pytest.mark.parametrize("path", ["notes/page.html", "notes/run.js", "README.md", "adapter.safetensors"])
def test_files_are_never_shown_in_place(server: HubServer, path: str) -> None:
    with server.client(None) as client:
        file = client.get(f"/acme/reviews/resolve/main/{path}", headers={"Accept": "text/html"})
    assert file.headers["content-type"] == "application/octet-stream"
    assert file.headers["content-disposition"].startswith("attachment;")
    assert "sandbox" in file.headers["content-security-policy"]
    assert file.headers["x-content-type-options"] == "nosniff"


def test_secrets_are_neither_stored_nor_logged(hub_makers: Makers, tmp_path: Path) -> None:
    with running(hub_makers, tmp_path) as hub:
        secrets = [*hub.tokens.values(), PASSWORD]
        with hub.client() as alice:
            seed.push(alice, "alice/reviews", private=True)
            made = alice.post(
                "/api/v1/tokens", json={"name": "new", "role": "read"}, headers={"X-Password": PASSWORD}
            ).json()
            secrets.append(made["token"])
            uploading = alice.get("/api/models/alice/reviews/xet-write-token/main").json()["accessToken"]
            secrets.append(uploading)
        with httpx.Client(base_url=hub.url, trust_env=False) as browser:
            form = browser.get("/login", headers={"Accept": "text/html"}).text
            fields = dict(re.findall(r'<input[^>]*name="([^"]+)"[^>]*value="([^"]*)"', form))
            sent = {**fields, "name": "alice", "password": PASSWORD}
            assert browser.post("/login", data=sent).status_code in (200, 302, 303)
            assert browser.cookies
            secrets += [*browser.cookies.values()]
            # What fails is logged, if anything is.
            for secret in secrets:
                headers = {"Authorization": f"Bearer {secret}"}
                browser.get("/api/whoami-v2", headers=headers)
                browser.post("/api/models/alice/reviews/commit/main", headers=headers, content=b"no JSON")
                browser.put("/_lfs/1/x?sig=" + secret)
        time.sleep(0.1)
        kept = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {"hub.db", "hub.db-wal", "log.txt"} <= {path.name for path in kept}
        for path in kept:
            data = path.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in data], path
    assert len(set(secrets)) >= 7


@pytest.fixture
def limited(hub_makers: Makers, tmp_path: Path) -> Iterator[HubProcess]:
    with running(hub_makers, tmp_path, "--limits=api=6/2,login=3/2,resolve=6/2,upload=6/2") as hub:
        yield hub


@pytest.mark.slow
def test_who_asks_too_often_waits_and_comes_back(limited: HubProcess) -> None:
    with limited.client(None) as anyone:
        for path in ("/api/models", "/acme/none/resolve/main/a.txt", "/_lfs/1/x"):
            answers = []
            while not answers or answers[-1].status_code != 429:
                answers.append(anyone.get(path))
                assert len(answers) < 20
            refused = answers[-1]
            assert 1 <= int(refused.headers["retry-after"]) <= 2
            assert ";r=0;" in refused.headers["ratelimit"] and ";q=6;w=2" in refused.headers["ratelimit-policy"]
            assert "Wait" in refused.json()["error"]
            time.sleep(int(refused.headers["retry-after"]))
            assert anyone.get(path).status_code == answers[0].status_code


def test_a_client_waits_by_itself(limited: HubProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with limited.client() as alice:
        seed.push(alice, "alice/reviews")
    api = HfApi(limited.url, limited.tokens["alice"])
    for _ in range(3):
        assert len(list(api.list_models(author="alice"))) == 1
