"""Is everything that changes something, or shows what is not for everyone, kept from those whom its line does not name?

Each route is called by nine callers, with a request that is right but for the caller. Who may gets on, to whatever the
route says; who may not gets a refusal, and the database stays as it was.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import APIRouter, FastAPI

from adapterhub import accounts, rights
from adapterhub.db import schema
from adapterhub.db.schema import now
from adapterhub.http import SAFE
from adapterhub.hub import Hub
from adapterhub.rights import RIGHTS, Guarded, Page, Right, Who
from tests.adapterhub.acceptance import seed
from tests.adapterhub.acceptance.test_private import BODIES
from tests.adapterhub.conftest import PASSWORD, HubServer, Makers

REPO = "acme/reviews"
REFUSED = (401, 403)
# What stands for the names in a path.
VALUES = {
    "namespace": "acme",
    "name": "reviews",
    "org": "acme",
    "user": "bob",
    "revision": "main",
    "number": "1",
    "id": "999",
    "key": "none",
    "path": "x",
    "scope": "1-2026W01",
    "prefix": "default",
    "uid": "none",
    "oid": "0" * 64,
    "upload": "none",
}
PATHS = {
    "/organizations/{name}/members": {"name": "acme"},
    "/admin/accounts/{name}": {"name": "bob"},
    "/api/v1/orgs/{org}/members/{user}": {"user": "erin"},  # any caller may leave
    "/api/models/{namespace}/{name}/branch/{revision:path}": {"revision": "other"},
}
JSON: Mapping[str, Any] = {
    **{path: given["json"] for path, given in BODIES.items() if "json" in given},
    "/api/repos/create": {"name": "acme/reviews"},  # is there: who may is told so
    "/api/repos/delete": {"name": "acme/doomed"},
    "/api/repos/move": {"fromRepo": REPO, "toRepo": REPO},
    "/settings": {"private": False},
    "/api/v1/yank": {"id": REPO, "reason": "Old."},
    "/api/v1/preferred": {"id": REPO},
    "/collections/{namespace}/{name}": {"items": [REPO]},
    "/api/v1/orgs": {"name": "acme"},
    "/members/{user}": {"role": "read"},
    "/api/v1/tokens": {"name": "more", "role": "write"},
    "/api/v1/usage/{namespace}": {"quota": None},
    "/api/v1/check": {"files": []},
    "/api/validate-yaml": {"content": "# x"},
}
FORMS: Mapping[str, Mapping[str, str]] = {
    "/settings/tokens": {"name": "more", "role": "write"},
    "/settings/tokens/revoke": {"revoke": "999"},
    "/settings/password": {"current": "guessed", "password": "something new"},
    "/organizations/new": {"name": "acme"},
    "/organizations/{name}/members": {"user": "bob", "role": "read"},
    "/admin/accounts": {"name": "acme", "password": "long enough", "is_admin": "1"},
    "/admin/accounts/{name}": {"quota": ""},
    "/collections": {"namespace": "acme", "name": "best", "items": REPO},
    "/watching": {"kind": "task", "target": "nli"},
    "/{namespace}/{name}/like": {"action": "like"},
    "/models": {"config": '{"model_type": "bert", "hidden_size": 768}'},
    "/upload": {"repo": REPO, "card": "# Mine\n", "action": "publish"},
    "/{namespace}/{name}/discussions": {"title": "a", "body": "b"},
    "/{namespace}/{name}/discussions/{number:int}": {"body": "b"},
    "/{namespace}/{name}/settings": {"action": "public"},
    "/confirm": {"password": PASSWORD},
}
# The database's own notes of who was here.
UNTOLD = {schema.session.name, schema.rate.name}


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Attributes:
        who: lines of the table that let them pass, at the repository and organisation `acme`.
        writes: whether they have the role `write`.
    """

    who: frozenset[Who]
    writes: bool = True


_READS = {Who.UNASKED, Who.ANYONE, Who.SIGNED}
_STRANGER = {*_READS, Who.USER, Who.PARTICIPANT}
_WRITER = {*_STRANGER, Who.WRITER}
_HELD = {Who.ACCOUNT}
CALLERS: Mapping[str, Caller] = {
    "nobody": Caller(frozenset(_READS)),
    "reader": Caller(frozenset({*_WRITER, Who.REPO_ADMIN, Who.ORG_ADMIN, Who.ADMIN, *_HELD}), writes=False),
    "elsewhere": Caller(frozenset({*_READS, Who.USER})),  # a token of alice's for another repository
    "here": Caller(frozenset({*_WRITER, Who.REPO_ADMIN})),  # a token of alice's for this namespace
    "bob": Caller(frozenset({*_STRANGER, *_HELD})),
    "carol": Caller(frozenset({*_WRITER, *_HELD})),  # a member
    "dave": Caller(frozenset({*_WRITER, Who.REPO_ADMIN, Who.ORG_ADMIN, *_HELD})),  # an admin of the organisation
    "alice": Caller(frozenset(Who)),  # runs the hub
}
SESSIONS = ("bob", "carol", "dave", "alice")


async def _people(hub: Hub) -> dict[str, str]:
    """Makes the callers that the hub has not yet; returns their tokens."""
    async with hub.db.write() as conn:
        acme = (await accounts.find_account(conn, "acme"))["id"]
        ids = {"alice": (await accounts.find_account(conn, "alice"))["id"]}
        for name, role in (("carol", "write"), ("dave", "admin"), ("erin", "read")):
            ids[name] = await accounts.create_user(conn, name, PASSWORD)
            await accounts.set_member(conn, acme, ids[name], role)
        tokens = {name: await accounts.create_token(conn, ids[name], name, "write") for name in ("carol", "dave")}
        for name, scope in (("elsewhere", ["alice/other"]), ("here", ["acme"])):
            tokens[name] = await accounts.create_token(conn, ids["alice"], name, "write", scope)
    return tokens


@pytest.fixture(scope="module")
def server(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with hub_makers.server(tmp_path_factory.mktemp("hub"), open_signup=True) as server:
        with server.client() as alice:
            seed.push(alice, REPO)
            alice.post(f"/api/models/{REPO}/discussions", json={"title": "first"}).raise_for_status()
        yield replace(server, tokens={**server.tokens, **server.call(_people)})


@pytest.fixture(scope="module")
def tokens(server: HubServer) -> Iterator[Mapping[str, httpx.Client]]:
    with ExitStack() as stack:
        names = {name: None if name == "nobody" else name for name in CALLERS}
        yield {name: stack.enter_context(server.client(known)) for name, known in names.items()}


@pytest.fixture(scope="module")
def sessions(server: HubServer) -> Iterator[Mapping[str, tuple[httpx.Client, str]]]:
    with ExitStack() as stack:
        opened = {name: server.browser(name) for name in SESSIONS}
        yield {name: (stack.enter_context(client), csrf) for name, (client, csrf) in opened.items()}


def known(app: Any) -> list[tuple[str, str, Any, Right]]:
    """All routes that have a line."""
    return [(*found, RIGHTS[found[:2]]) for found in rights.routes(app.routes) if found[:2] in RIGHTS]


def request(
    client: httpx.Client, method: str, path: str, csrf: str | None = None, *, me: str = "alice", **more: Any
) -> httpx.Response:
    """Calls a route with all that it needs but the caller's rights."""
    values = {**VALUES, **PATHS.get(path, {})}
    if path == "/api/v1/usage/{namespace}":
        values["namespace"] = me
    url = re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: values[match[1]], path)
    given: dict[str, Any] = {}
    if csrf is not None and path in FORMS | {"/logout": 0, "/upload/preview": 0, "/settings/profile": 0}:
        given["data"] = {**FORMS.get(path, {}), "csrf": csrf}
    elif method not in SAFE:
        if path.endswith("/commit/{revision:path}"):
            given["content"] = seed.lines({"a.txt": b"a"})
        else:
            given["json"] = next((body for end, body in JSON.items() if path.endswith(end)), {})
        given["headers"] = {"X-CSRF-Token": csrf} if csrf else {}
    if method == "DELETE" and path.startswith("/api/v1/"):
        given["params"] = {"id": REPO}
    given["headers"] = {**given.get("headers", {}), **more}
    return client.request(method, url, **given)


def may(caller: Caller, right: Right) -> bool:
    return right.who in caller.who and (caller.writes or not right.writes or right.who in (*_READS, Who.USER))


@pytest.fixture
def contents(server: HubServer) -> Iterator[Callable[[], dict[str, Any]]]:
    """Reads all rows of the database, where anything was written since they were read last."""
    kept: tuple[Any, dict[str, Any]] = None, {}
    hub = server.hub
    with closing(sqlite3.connect(hub.db.engine.url.database or ":memory:")) as beside:

        def read() -> dict[str, Any]:
            nonlocal kept
            version = beside.execute("PRAGMA data_version").fetchone() if hub.db.is_sqlite else object()
            if version != kept[0]:
                kept = version, _rows(server)
            return kept[1]

        yield read


def _rows(server: HubServer) -> dict[str, Any]:
    async def work(hub: Hub) -> dict[str, Any]:
        async with hub.db.read() as conn:
            return {
                table.name: sorted(map(repr, (await conn.execute(sa.select(table))).all()))
                for table in schema.metadata.sorted_tables
                if table.name not in UNTOLD
            }

    found: dict[str, Any] = server.call(work)
    return found


# ---- the table ------------------------------------------------------------------------------------------------------


def test_every_route_that_changes_something_has_a_line_and_a_gate(server: HubServer) -> None:
    found = [*rights.routes(server.app.routes)]
    assert len(found) > 100
    for method, path, route in found:
        assert method in SAFE or (method, path) in RIGHTS, f"{method} {path} declares nothing"
        assert (method, path) not in RIGHTS or isinstance(route, Guarded), f"{method} {path} is not guarded"
    assert {(method, path) for method, path, _ in found} >= RIGHTS.keys()


@pytest.mark.parametrize("route_class", [None, Guarded])
def test_an_application_with_another_route_does_not_start(server: HubServer, route_class: Any) -> None:
    async def anything() -> None: ...

    router = APIRouter(**({"route_class": route_class} if route_class else {}))
    router.add_api_route("/anything", anything, methods=["POST"])
    with pytest.raises(RuntimeError, match="POST /anything"):
        rights.check([*server.app.routes, *router.routes])
    line = [route for route in server.app.routes if getattr(route, "path", "") != "/admin"]
    with pytest.raises(RuntimeError, match="lines of RIGHTS without a route: GET /admin"):
        rights.check(line)


def test_a_route_without_a_line_lets_nobody_pass() -> None:
    from starlette.responses import JSONResponse
    from starlette.testclient import TestClient

    from adapterhub.errors import HubError

    async def anything() -> None: ...

    async def tell(_: Any, error: Any) -> JSONResponse:
        return JSONResponse({"error": error.message}, error.status)

    app = FastAPI()
    app.router.routes.append(Guarded("/anything", anything, methods=["POST"]))
    app.add_exception_handler(HubError, tell)
    assert TestClient(app).post("/anything").status_code == 403


# ---- each route, each caller ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLERS)
def test_with_a_token_or_without(
    server: HubServer, tokens: Mapping[str, httpx.Client], contents: Callable[[], dict[str, Any]], name: str
) -> None:
    """What each caller's token opens, and nothing else."""
    wrong = []
    for method, path, route, right in known(server.app):
        if isinstance(route, Page) or right.who is Who.SIGNED:
            continue
        passes = may(CALLERS[name], right)
        if path == "/api/repos/delete":
            tokens["alice"].post("/api/repos/create", json={"name": "acme/doomed"})
        before = None if passes else contents()
        sure = {"X-Password": PASSWORD} if right.password else {}
        answer = request(tokens[name], method, path, me=name, **sure)
        if (answer.status_code in REFUSED) == passes or answer.status_code >= 500:
            wrong.append((method, path, right, answer.status_code, answer.text))
        if before is not None and (after := contents()) != before:
            wrong.append((method, path, right, [key for key in after if after[key] != before[key]]))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("name", CALLERS)
def test_on_pages_a_token_is_nobody(
    server: HubServer, tokens: Mapping[str, httpx.Client], contents: Callable[[], dict[str, Any]], name: str
) -> None:
    wrong = []
    for method, path, route in rights.routes(server.app.routes):
        right = RIGHTS.get((method, path), Right(Who.ANYONE))
        if not isinstance(route, Page) or (method in SAFE and right.who is Who.ANYONE) or path == "/logout":
            continue
        before = contents()
        answer = request(tokens[name], method, path, csrf="", Accept="text/html")
        told = answer.headers.get("location", "").startswith("/login?next=") or answer.status_code in (401, 403)
        if right.who is not Who.ANYONE and not told:
            wrong.append((method, path, answer.status_code, answer.text))
        if right.who is not Who.ANYONE and contents() != before:
            wrong.append((method, path, "changed something"))
        if server.tokens.get(name, "no token") in answer.text or re.search("ahb_[A-Za-z0-9]{30}", answer.text):
            wrong.append((method, path, "tells a token"))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("name", SESSIONS)
def test_with_a_session(
    server: HubServer,
    tokens: Mapping[str, httpx.Client],
    sessions: Mapping[str, tuple[httpx.Client, str]],
    contents: Callable[[], dict[str, Any]],
    name: str,
) -> None:
    """What each person may do in the browser; nothing of it without the form's own secret."""
    client, csrf = sessions[name]
    wrong = []
    for method, path, _, right in known(server.app):
        if right.who is Who.SIGNED or path in ("/logout", "/login", "/signup", "/setup/{key}", "/settings/password"):
            continue
        passes = may(CALLERS[name], right)
        if path == "/api/repos/delete":
            tokens["alice"].post("/api/repos/create", json={"name": "acme/doomed"})
        if method not in SAFE and right.who is not Who.UNASKED:
            before = contents()
            forged = request(client, method, path, csrf="")
            if forged.status_code != 403 or contents() != before:
                wrong.append(("without csrf", method, path, forged.status_code, forged.text))
        answer = request(client, method, path, csrf=csrf, me=name)
        refused = answer.status_code in REFUSED
        if refused == passes or answer.status_code >= 500:
            wrong.append((method, path, right, answer.status_code, re.sub("<[^>]*>", "", answer.text)[-600:]))
    assert not wrong, "\n".join(map(str, wrong))


# ---- passwords ------------------------------------------------------------------------------------------------------


async def _age(hub: Hub) -> None:
    """Lets all sessions have been opened longer ago than a password counts."""
    async with hub.db.write() as conn:
        await conn.execute(sa.update(schema.session).values(created=now() - rights.FRESH - timedelta(seconds=1)))


def test_tokens_accounts_admins_and_members_need_the_password(
    server: HubServer, tokens: Mapping[str, httpx.Client], contents: Callable[[], dict[str, Any]]
) -> None:
    needing = [(method, path, route) for method, path, route, right in known(server.app) if right.password]
    assert {path for _, path, _ in needing} >= {
        *("/settings/tokens", "/admin/accounts", "/api/v1/tokens"),
        *("/organizations/{name}/members", "/api/v1/orgs/{org}/members/{user}"),
    }
    client, csrf = server.browser("alice")
    with client:
        server.call(_age)
        before = contents()
        for method, path, route in needing:
            stale = request(client, method, path, csrf=csrf)
            assert stale.status_code == 403 and "password" in stale.text, path
            if not isinstance(route, Page):
                for sent in ({}, {"X-Password": "guessed"}):
                    assert request(tokens["alice"], method, path, **sent).status_code == 403, path
        assert contents() == before
        assert 'href="/confirm?next=/settings/tokens"' in client.get("/settings/tokens").text
        assert 'href="/confirm?next=/acme?tab=members"' in client.get("/acme?tab=members").text
        wrong = client.post("/confirm", data={"csrf": csrf, "password": "guessed"})
        assert wrong.status_code == 403 and "another one" in wrong.text
        assert request(client, "POST", "/settings/tokens", csrf=csrf).status_code == 403
        right = client.post("/confirm", data={"csrf": csrf, "password": PASSWORD, "next": "/settings/tokens"})
        assert (right.status_code, right.headers["location"]) == (303, "/settings/tokens")
        assert request(client, "POST", "/settings/tokens", csrf=csrf).status_code == 200


# ---- forms of other sites -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/login", "/signup", "/setup/none", "/logout", "/confirm"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_forms_of_other_sites_are_refused(server: HubServer, path: str, origin: str) -> None:
    """Also of browsers that send no Sec-Fetch-Site."""
    client, csrf = server.browser("bob")
    form = {"csrf": csrf, "name": "eve", "password": PASSWORD}
    with client:
        answer = client.post(path, data=form, headers={"Origin": origin})
        assert answer.status_code == 403 and "another site" in answer.text
    with httpx.Client(base_url=server.url, trust_env=False) as visitor:
        if path != "/confirm":
            assert visitor.post(path, data=form, headers={"Origin": origin}).status_code == 403
            assert not visitor.cookies


def test_forms_of_the_site_itself_are_taken(server: HubServer) -> None:
    port = server.url.rsplit(":", 1)[1]
    for origin, host in ((server.url, f"127.0.0.1:{port}"), (f"http://hub.test:{port}", f"hub.test:{port}")):
        answer = httpx.post(
            f"{server.url}/login",
            data={"name": "bob", "password": PASSWORD},
            headers={"Origin": origin, "Host": host},
            trust_env=False,
        )
        assert answer.status_code == 303, origin
