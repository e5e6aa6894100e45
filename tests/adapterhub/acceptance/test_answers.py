"""Are answers kept out of other callers' caches, calls of other sites refused, and clients that hang up no matter?"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from tests.adapterhub.acceptance import seed
from tests.adapterhub.acceptance.process import HubProcess, running
from tests.adapterhub.acceptance.routes import routes
from tests.adapterhub.acceptance.test_secrets import PLACES, pages
from tests.adapterhub.conftest import HubServer, Makers

REPO = "acme/reviews"


@pytest.fixture(scope="module")
def server(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with hub_makers.server(tmp_path_factory.mktemp("hub")) as server:
        with server.client() as alice:
            seed.push(alice, REPO, **{"notes/a.txt": b"a"})
        yield server


@pytest.mark.parametrize("who", [None, "alice"])
def test_nothing_that_depends_on_the_caller_is_kept_for_others(server: HubServer, who: str | None) -> None:
    assert {"namespace", "revision"} <= PLACES.keys() and routes(server.app)
    public = set()
    with server.client(who) as client:
        client.headers["Cookie"] = server.browser(who)[0].headers["Cookie"] if who else ""
        for answer in pages(server, client):
            kept, varies = answer.headers.get("cache-control", ""), answer.headers.get("vary", "").lower()
            if "public" in kept:
                public.add(answer.url.path)
                continue
            assert "private" in kept or "no-store" in kept, answer.url
            assert "cookie" in varies, answer.url
            assert "authorization" in varies or not answer.url.path.startswith("/api/"), answer.url
    assert public <= {"/atom.xml", "/sitemap.xml"}


@pytest.mark.parametrize("path", ["batch", "verify"])
def test_a_session_alone_opens_no_large_file(server: HubServer, path: str) -> None:
    """Another site's page could send this form with it, as text."""
    client, csrf = server.browser("alice")
    address = f"/{REPO}.git/info/lfs/objects/{path}"
    body = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1}], "oid": "0" * 64, "size": 1}
    with client:
        refused = client.post(address, json=body)
        assert refused.status_code == 403 and "did not come from this hub" in refused.text
        meant = client.post(address, json=body, headers={"X-CSRF-Token": csrf})
        assert meant.status_code == (200 if path == "batch" else 404)


def test_figures_are_for_administrators(server: HubServer) -> None:
    with server.client(None) as anyone, server.client("bob") as bob, server.client("reader") as prometheus:
        assert anyone.get("/metrics").status_code == 401
        assert bob.get("/metrics").status_code == 403
        assert "adapterhub_repositories 1.0" in prometheus.get("/metrics").text


@pytest.fixture
def hub(hub_makers: Makers, tmp_path: object) -> Iterator[HubProcess]:
    with running(hub_makers, tmp_path) as hub:  # type: ignore[arg-type]
        with hub.client() as alice:
            seed.push(alice, REPO)
        yield hub


HANGING = {
    "a card": b"POST /api/validate-yaml HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    "a body of the API": b"POST /api/v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    "a form": b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 1000\r\n\r\nname=",
    "files in a form": b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 1000\r\n\r\n--b\r\n",
    "a commit": b"POST /api/models/acme/reviews/commit/main HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\n"
    b"Content-Length: 1000\r\n\r\n{",
    "an answer": b"GET /acme/reviews/resolve/main/adapter.safetensors HTTP/1.1\r\nHost: x\r\n\r\n",
}


def test_a_client_that_hangs_up_leaves_no_trace(hub: HubProcess) -> None:
    before = len(hub.log.read_text().splitlines())
    host, port = hub.url.removeprefix("http://").split(":")
    for sent in HANGING.values():
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent.replace(b"TOKEN", hub.tokens["alice"].encode()))
            connection.settimeout(0.5)
            with suppress(TimeoutError):
                connection.recv(10)
    with httpx.Client(base_url=hub.url, trust_env=False) as client:
        assert client.get("/healthz").is_success
    written = hub.log.read_text().splitlines()[before:]
    assert written == [], "\n".join(line for line in written if not line.startswith(" "))
