"""Does every number of a query, however large, however written, get an answer or a clear refusal?"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import pytest

from adapterhub import rights
from adapterhub.web import browse
from tests.adapterhub.acceptance import seed
from tests.adapterhub.conftest import HubServer, Makers

NUMBERS = ["-1", "0", "1", str(2**31), str(2**32), str(2**53 + 1), str(2**63), str(2**64), "9" * 400, "9" * 5000]
ODD = ["\u00b2", "\u0663", "1.5", "1e9", "0x10", "nan", "inf", "-inf", " ", "+1", "1_000", "null"]
# Those that routes read from the query by hand.
BY_HAND = {
    "/adapters": ["rank_min", "rank_max", "parameters_max", "reduction_factor_min", "reduction_factor_max", "cursor"],
    "/explore/sentiment/sst-2": ["rank_max", "parameters_max"],
    "/models/bert-base-uncased": ["rank_max", "reduction_factor_max"],
    "/acme": ["cursor"],
    "/admin?tab=audit": ["before"],
    "/acme/reviews/versions": ["p"],
    "/acme/reviews/discussions": ["p"],
    "/api/models": ["limit", "cursor"],
    "/api/models/acme/reviews/tree/main": ["cursor"],
    "/api/models/acme/reviews/commits/main": ["p", "limit"],
    "/api/models/acme/reviews/discussions": ["p"],
    "/_blob/" + "0" * 64: ["size", "exp"],
}
IN_PATHS = [
    ("GET", "/acme/reviews/discussions/{}"),
    ("POST", "/acme/reviews/discussions/{}"),
    ("GET", "/api/models/acme/reviews/discussions/{}"),
    ("POST", "/api/models/acme/reviews/discussions/{}/comment"),
    ("POST", "/api/models/acme/reviews/discussions/{}/status"),
    ("POST", "/api/models/acme/reviews/discussions/{}/merge"),
    ("POST", "/api/models/acme/reviews/commit/refs%2Fpr%2F{}"),
    ("DELETE", "/api/v1/tokens/{}"),
    ("PUT", "/_lfs/parts/none/{}?size=1&exp=1"),
]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def server(request: Any, hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with hub_makers.server(tmp_path_factory.mktemp("hub"), db=request.param) as server:
        with server.client() as alice:
            seed.push(alice, "acme/reviews")
        yield server


def of_the_api(app: Any) -> Iterator[tuple[str, str]]:
    """Paths and query parameters that FastAPI reads as numbers."""
    for method, path, route in rights.routes(app.routes):
        if method == "GET" and path.startswith("/api/v1/"):
            for name, parameter in inspect.signature(route.endpoint, eval_str=True).parameters.items():
                kinds = {parameter.annotation, *get_args(parameter.annotation)}
                if kinds & {int, float, int | None, float | None} and f"{{{name}" not in path:
                    yield re.sub(r"{(\\w+)[^}]*}", lambda match: PLACES[match[1]], path), name


PLACES = {"namespace": "acme", "name": "reviews", "org": "acme", "rev": "main", "task": "sentiment", "subtask": "sst-2"}
PLACES |= {"sha256": "0" * 64}


def ask(client: httpx.Client, path: str, name: str, value: str) -> int:
    return client.get(path, params={**httpx.URL(path).params, name: value}).status_code


def test_in_queries(server: HubServer) -> None:
    asked = [(path, name) for path, names in BY_HAND.items() for name in names]
    asked += of_the_api(server.app)
    assert {name for _, name in asked} >= {"rank_max", "limit", "before", "p", "hidden_size"}
    read = {name for name in browse._READERS if name.startswith(("rank", "parameters", "reduction"))}
    assert read <= {name for _, name in asked}
    browser, _ = server.browser("alice")
    wrong = []
    with server.client() as client, browser:
        for path, name in asked:
            for value in (*NUMBERS, *ODD):
                status = ask(client if path.startswith(("/api/", "/_blob")) else browser, path, name, value)
                if status >= 500:
                    wrong.append((path, name, value[:30], status))
    assert not wrong


def test_in_paths(server: HubServer) -> None:
    browser, csrf = server.browser("alice")
    wrong = []
    with server.client() as client, browser:
        for method, path in IN_PATHS:
            for value in ("0", *NUMBERS[3:8]):
                page = not path.startswith(("/api/", "/_lfs"))
                given: dict[str, Any] = {"data": {"csrf": csrf, "body": "a"}} if page else {"json": {"comment": "a"}}
                given = {} if method == "GET" else {"content": b"{}"} if "/commit/" in path else given
                status = (browser if page else client).request(method, path.format(value), **given).status_code
                if not 400 <= status < 500:
                    wrong.append((method, path, value, status))
    assert not wrong
