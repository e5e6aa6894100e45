"""One hub with sample data for all tests of the site that only read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.adapterhub.conftest import PASSWORD, HubServer, Makers

from .sample import fill

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = os.environ.get("ADAPTERHUB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def site(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A running hub with sample data; tests do not change it."""
    with hub_makers.server(tmp_path_factory.mktemp("site"), open_signup=True) as server:
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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A real browser."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (or set ADAPTERHUB_CHROMIUM)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def browser(server: HubServer) -> httpx.Client:
    """A client that asks for pages."""
    return httpx.Client(
        base_url=server.url, headers={"Accept": "text/html"}, follow_redirects=True, timeout=30, trust_env=False
    )


def log_in(client: httpx.Client, name: str) -> None:
    """Logs in by the form."""
    answer = client.post("/login", data={"name": name, "password": PASSWORD, "next": "/"})
    assert answer.status_code == 200 and name in answer.text
