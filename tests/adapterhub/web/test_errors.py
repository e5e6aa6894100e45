"""Every kind of error has a page that says what to do next."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from adapterhub import errors
from adapterhub.hub import Hub
from adapterhub.web import errors as pages
from tests.adapterhub.conftest import HubServer

# All but the one that browsers follow by themselves.
KINDS: list[type[errors.HubError]] = [getattr(errors, name) for name in errors.__all__ if name != "Moved"]


def example(kind: type[errors.HubError]) -> errors.HubError:
    """An error of a kind."""
    if kind is errors.RepoNotFound:
        return errors.RepoNotFound(anonymous=True)
    if kind is errors.TooManyRequests:
        return errors.TooManyRequests("api", wait=30, limit=1000, window=300)
    return kind("Something of this kind went wrong.")


def rendered(site: HubServer, error: errors.HubError, path: str = "/alice/bert-sst2/blob/main/none") -> Response:
    """The page of an error that a visitor meets at a path."""
    scope: dict[str, Any] = {
        "type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "app": site.app, "state": {},
    }  # fmt: skip

    async def work(hub: Hub) -> Response:
        return await pages.error_page(Request(scope), error)

    answer: Response = site.call(work)
    return answer


def main_of(answer: Response) -> str:
    match = re.search("<main.*</main>", bytes(answer.body).decode(), re.S)
    assert match is not None, "the plain page came instead of the usual one"
    return match[0]


@pytest.mark.parametrize("path", ["/alice/bert-sst2/blob/main/none", "/upload"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_next_step(
    site: HubServer, visitor: httpx.Client, kind: type[errors.HubError], path: str
) -> None:
    error = example(kind)
    html = main_of(rendered(site, error, path))
    step = re.search('<p class="next">(.*?)</p>', html)
    assert step is not None and step[1].endswith(".")
    assert "<h1>" in html
    if kind is not errors.RepoNotFound:
        assert error.message in unescape(html)
    for link in re.findall('href="([^"]*)"', html):
        assert visitor.get(unescape(link)).status_code == 200, f"{kind.__name__} leads to {link}"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.Unauthorized, "/login?next="),
        (errors.RepoNotFound, "/login?next="),
        (errors.RevisionNotFound, 'href="/alice/bert-sst2/versions"'),
        (errors.EntryNotFound, 'href="/alice/bert-sst2"'),
        (errors.TooLarge, 'href="/docs/push"'),
        (errors.Unprocessable, 'href="/docs/checks"'),
        (errors.TooManyRequests, "Wait 30 seconds"),
    ],
)
def test_the_step_belongs_to_the_error(site: HubServer, kind: type[errors.HubError], words: str) -> None:
    assert words in main_of(rendered(site, example(kind)))


def test_what_has_moved_leads_there(site: HubServer) -> None:
    answer = rendered(site, errors.Moved("/alice/new"))
    assert (answer.status_code, answer.headers["location"]) == (308, "/alice/new")


def test_what_the_framework_refuses_has_a_next_step_too(visitor: httpx.Client) -> None:
    answer = visitor.delete("/adapters")
    assert answer.status_code == 405
    assert "links and buttons of the page" in answer.text


def test_there_is_a_page_even_where_the_usual_one_fails(site: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any, **__: Any) -> Response:
        raise RuntimeError

    monkeypatch.setattr(pages, "page", fails)
    answer = rendered(site, errors.StorageUnavailable("No database answers."))
    assert answer.status_code == 503
    assert b"Try again in a minute" in answer.body
