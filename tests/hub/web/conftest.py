"""One hub with sample data for all tests of the site that only read."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.hub.conftest import PASSWORD, HubServer, Makers

from .sample import fill


@pytest.fixture(scope="session")
def site(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A running hub with sample data; tests do not change it."""
    with hub_makers.server(tmp_path_factory.mktemp("site")) as server:
        server.call(fill)
        yield server


@pytest.fixture(scope="session")
def visitor(site: HubServer) -> Iterator[httpx.Client]:
    """A browser of nobody's."""
    with browser(site) as client:
        yield client


@pytest.fixture(scope="session")
def alice(site: HubServer) -> Iterator[httpx.Client]:
    """A browser of somebody who is logged in and runs the hub."""
    with browser(site) as client:
        log_in(client, "alice")
        yield client


def browser(server: HubServer) -> httpx.Client:
    """A client that asks for pages."""
    return httpx.Client(
        base_url=server.url, headers={"Accept": "text/html"}, follow_redirects=True, timeout=30, trust_env=False
    )


def log_in(client: httpx.Client, name: str) -> None:
    """Logs in by the form."""
    answer = client.post("/login", data={"name": name, "password": PASSWORD, "next": "/"})
    assert answer.status_code == 200 and name in answer.text
