"""Every kind of page against WCAG 2.1 AA, as far as axe-core can tell: light and wide, dark and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from adapterhub import errors
from tests.adapterhub.conftest import HubServer

from .addresses import LOGGED_IN, NO_PAGES, PAGES, route_of, routes
from .test_errors import example, rendered

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow  # half a minute: axe-core looks at every element of more than a hundred views

LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
VIEWS = [("light", 1280), ("dark", 360)]
# What differs from others only in what it names.
LIKE_OTHERS = {
    "/explore/text_lang",
    "/architectures/houlsby",
    "/architectures/lohfink-rossi-leaveout",
    "/alice/bert-sst2?revision=v1.0",
    "/alice/bert-sst2/tree/feat%2Flonger",
    "/alice/bert-sst2/tree/refs%2Fpr%2F2",
    "/alice/bert-sst2/commits/feat%2Flonger",
    "/docs/find",
    "/docs/push",
}
ERRORS = [errors.Forbidden, errors.NotFound, errors.Unprocessable, errors.TooManyRequests]
# Lists are cut: what follows their first items looks like those, and takes axe-core long.
CUT = """document.querySelectorAll(
    "li:nth-child(n+6), .adapter:nth-child(n+3), .grid > :nth-child(n+3), tr:nth-child(n+3), .endpoint ~ .endpoint"
).forEach(item => item.remove())"""


@pytest.fixture(scope="module")
def tabs(chromium: Browser, site: HubServer, alice: httpx.Client) -> Iterator[dict[str, Page]]:
    """A visitor's tab, and one of alice, who is logged in."""
    axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")
    visiting, logged_in = chromium.new_context(), chromium.new_context()
    logged_in.add_cookies([{"name": name, "value": value, "url": site.url} for name, value in alice.cookies.items()])
    for context in (visiting, logged_in):
        context.add_init_script(axe.AXE_SCRIPT)
    yield {"visitor": visiting.new_page(), "alice": logged_in.new_page()}
    visiting.close()
    logged_in.close()


def violations(tab: Page, address: str) -> list[str]:
    """What axe-core finds wrong with an address, in all views: the page, the rule, the place, and what mends it."""
    tab.goto(address, wait_until="domcontentloaded")
    tab.evaluate(CUT)
    found = []
    for theme, width in VIEWS:
        tab.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        tab.set_viewport_size({"width": width, "height": 900})
        options = {"runOnly": LEVELS, "resultTypes": ["violations"], "preload": False}
        broken = tab.evaluate("options => axe.run(options).then(result => result.violations)", options)
        found += [_line(f"{address} ({theme}, {width})", rule, node) for rule in broken for node in rule["nodes"]]
    return found


def _line(view: str, rule: dict[str, Any], node: dict[str, Any]) -> str:
    return f"{view}: {rule['id']} at {node['target']}: {node['failureSummary']} See {rule['helpUrl']}"


def test_every_page_is_listed() -> None:
    """A new route needs an address in `addresses.py`, or a reason why it is no page."""
    shown = {route_of(address) for address in (*PAGES, *LOGGED_IN)}
    assert set(NO_PAGES) <= set(routes())
    assert set(routes()) - set(NO_PAGES) - shown == set()
    assert LIKE_OTHERS <= set(PAGES)


@pytest.mark.parametrize("path", [path for path in PAGES if path not in LIKE_OTHERS])
def test_a_page_keeps_the_rules(tabs: dict[str, Page], site: HubServer, path: str) -> None:
    assert violations(tabs["visitor"], site.url + path) == []


@pytest.mark.parametrize("path", LOGGED_IN)
def test_a_page_of_members_keeps_the_rules(tabs: dict[str, Page], site: HubServer, path: str) -> None:
    assert violations(tabs["alice"], site.url + path) == []


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_page_keeps_the_rules(tabs: dict[str, Page], site: HubServer, kind: type[errors.HubError]) -> None:
    html = bytes(rendered(site, example(kind)).body).decode()
    assert violations(tabs["visitor"], serve(tabs["visitor"], site, kind.__name__, html)) == []


def test_a_page_that_breaks_rules_is_found(tabs: dict[str, Page], site: HubServer) -> None:
    broken = "<!doctype html><html lang=en><title>Broken</title><body><img src=x><p style='color:#999'>Pale</p>"
    found = "\n".join(violations(tabs["visitor"], serve(tabs["visitor"], site, "broken", broken)))
    assert "/broken (light, 1280): image-alt at ['img']" in found
    assert "color-contrast" in found


def serve(tab: Page, site: HubServer, name: str, html: str) -> str:
    """The address where a tab sees some HTML."""
    url = f"{site.url}/{name}"
    tab.route(url, lambda route: route.fulfill(body=html, content_type="text/html; charset=utf-8"))
    return url
