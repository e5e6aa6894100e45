"""The site in a real browser: a quiet console, no other host, narrow screens, keys, copying, and no scripts at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.adapterhub.conftest import PASSWORD, HubServer

from .addresses import LOGGED_IN, PAGES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"

pytestmark = pytest.mark.slow


class Watched:
    """A tab that remembers what went wrong in it."""

    def __init__(self, context: BrowserContext, server: HubServer) -> None:
        self.page: Page = context.new_page()
        self.server = server
        self.wrong: list[str] = []
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.wrong.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._check(request.url))

    def _check(self, url: str) -> None:
        if not url.startswith((self.server.url, "data:")):
            self.wrong.append(f"request to {url}")

    def go(self, path: str) -> Page:
        self.page.goto(self.server.url + path)
        return self.page


def tab(chromium: Browser, site: HubServer, **options: object) -> Watched:
    return Watched(chromium.new_context(**options), site)  # type: ignore[arg-type]


def log_in(opened: Watched) -> None:
    page = opened.go("/login")
    page.fill("#name", "alice")
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_selector(".avatar")


def wait_for(page: Page, is_right: Callable[[int], bool]) -> None:
    """Waits until the list has a number of adapters; the page's policy forbids to wait by a script of ours."""
    for _ in range(100):
        if is_right(page.locator(".adapter").count()):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{page.url} shows {page.locator('.adapter').count()} adapters")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_quiet_and_fit_narrow_screens(chromium: Browser, site: HubServer, theme: str, tmp_path: Path) -> None:
    opened = tab(chromium, site, viewport={"width": 360, "height": 800}, color_scheme=theme)
    wide = []
    for path in PAGES:
        page = opened.go(path)
        page.screenshot(path=tmp_path / "page.png")
        wide += [path] if page.evaluate(OVERFLOW) > 0 else []
    log_in(opened)
    for path in LOGGED_IN:
        wide += [path] if opened.go(path).evaluate(OVERFLOW) > 0 else []
    assert wide == []
    assert opened.wrong == []


def test_filters_change_list_and_address_without_loading_the_page(chromium: Browser, site: HubServer) -> None:
    opened = tab(chromium, site)
    page = opened.go("/adapters")
    page.evaluate("window.same = true")
    page.fill("#q", "swahili")
    wait_for(page, lambda count: count == 1)
    assert "q=swahili" in page.url and "sort=downloads" in page.url
    assert page.evaluate("document.activeElement.id") == "q"
    page.fill("#q", "")
    wait_for(page, lambda count: count > 5)
    page.click(".facet:has-text('lora')")
    wait_for(page, lambda count: count == 1)
    assert "method=lora" in page.url
    assert page.evaluate("window.same")
    page.go_back()
    wait_for(page, lambda count: count > 5)
    assert opened.wrong == []


def test_keys_lead_through_the_page(chromium: Browser, site: HubServer) -> None:
    page = tab(chromium, site).go("/alice/bert-sst2")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "site-search"
    page.keyboard.type("swahili")
    page.keyboard.press("Enter")
    page.wait_for_url("**/adapters?q=swahili*")
    page = tab(chromium, site).go("/alice/bert-sst2")
    page.focus("#snippet-adapters")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#snippet-code-upstream") and not page.is_visible("#snippet-code-adapters")


def test_what_has_the_focus_can_be_seen(chromium: Browser, site: HubServer) -> None:
    page = tab(chromium, site).go("/alice/bert-sst2")
    for _ in range(25):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            "(e => { const label = e.labels?.[0]; const s = getComputedStyle(e.type === 'radio' && label ? label : e);"
            " return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2; })(document.activeElement)"
        )
        assert seen, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")


def test_code_is_copied(chromium: Browser, site: HubServer) -> None:
    opened = tab(chromium, site, permissions=["clipboard-read", "clipboard-write"])
    page = opened.go("/alice/bert-sst2")
    page.click("[data-copy=snippet-code-adapters]")
    page.wait_for_selector(".copy.done")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.inner_text("#snippet-code-adapters")
    assert "load_adapter('alice/bert-sst2'" in copied
    assert opened.wrong == []


def test_the_theme_stays_as_chosen(chromium: Browser, site: HubServer) -> None:
    page = tab(chromium, site, color_scheme="light").go("/")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark


def test_without_javascript_the_site_works(chromium: Browser, site: HubServer) -> None:
    opened = tab(chromium, site, java_script_enabled=False)
    page = opened.go("/")
    page.fill("#q", "swahili")
    page.click(".big-search button")
    assert page.locator(".adapter").count() == 1
    page.goto(f"{site.url}/adapters")
    page.click(".facet:has-text('lora') >> nth=0")
    assert page.locator(".adapter").count() == 1
    page.goto(f"{site.url}/alice/bert-sst2")
    page.click("label[for=snippet-hf]")
    assert page.is_visible("#snippet-code-hf")
    assert not page.is_visible("#theme")
    log_in(opened)
    page.goto(f"{site.url}/upload")
    page.fill("#card", "# A title\n\nand **text**")
    page.click("text=Preview the card")
    assert page.inner_text("#preview strong") == "text"


def test_the_upload_page_checks_before_it_sends(chromium: Browser, site: HubServer, tmp_path: Path) -> None:
    opened = tab(chromium, site)
    log_in(opened)
    page = opened.go("/upload")
    page.fill("#name", "checked")
    page.fill("#card", "---\nlicense: mit\nbase_model: bert-base-uncased\n---\n\n# Seen **live**\n")
    page.wait_for_selector("#preview strong")
    (tmp_path / "adapter_config.json").write_text("{}")
    page.set_input_files("#files", tmp_path / "adapter_config.json")
    page.wait_for_selector("#checks .chip.bad")
    assert "files.config" in page.inner_text("#checks")
    assert opened.wrong == []
