"""Limits on requests and bodies, on an application that does nothing."""

import asyncio

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from adapterhub import accounts
from adapterhub.accounts import Principal
from adapterhub.db import migrate
from adapterhub.db.engine import Database
from adapterhub.errors import HubError, Unauthorized
from adapterhub.http import SESSION_COOKIE, error_headers
from adapterhub.ops import limits
from adapterhub.ops.limits import Limiter, kind_of, takes_files
from adapterhub.settings import Settings

GOOD = [accounts.digest_of(f"Bearer {word}") for word in ("good", "better", "best")]


def client(app=None, address="10.0.0.1", **settings):
    return TestClient(app or limited(**settings), client=(address, 5000))


def limited(**settings):
    inner = FastAPI()

    async def answer(request: Request, path: str):
        word = accounts.digest_of(request.headers.get("authorization", ""))
        if word in GOOD:
            request.state.principal = Principal(id=1, name="alice", token_id=1 + GOOD.index(word))
        elif word:
            raise Unauthorized("Unknown.")
        if cookie := request.cookies.get(SESSION_COOKIE):
            request.state.principal = Principal(id=1, name="alice", session=accounts.digest(cookie))
        return {"bytes": len(await request.body())}

    async def tell(request, error):
        return JSONResponse({"error": error.message}, error.status, headers=error_headers(error))

    inner.add_exception_handler(HubError, tell)
    inner.add_api_route("/{path:path}", answer, methods=["GET", "POST", "PUT"])
    return Limiter(inner, Settings(**{"limits": {"api": (3, 3600), "login": (1, 3600)}, **settings}))


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/api/models", "api"),
        ("GET", "/", "api"),
        ("GET", "/acme/sst2", "api"),
        ("GET", "/acme/sst2/resolve/main/a.json", "resolve"),
        ("HEAD", "/acme/sst2/resolve/refs%2Fpr%2F1/a.json", "resolve"),
        ("GET", "/_blob/abc", "resolve"),
        ("PUT", "/_lfs/1/abc", "upload"),
        ("POST", "/xet/7-2026W47/v1/xorbs/default/abc", "upload"),
        ("POST", "/login", "login"),
        ("POST", "/setup/key", "login"),
        ("POST", "/login-things", "api"),
        ("GET", "/login", "api"),
        ("GET", "/healthz", ""),
        ("GET", "/static/site.css", ""),
        ("GET", "/static-things/x", "api"),
    ],
)
def test_kinds(method, path, kind):
    assert kind_of(method, path) == kind


@pytest.mark.parametrize(
    ("path", "large"),
    [
        ("/_lfs/1/abc", True),
        ("/api/models/acme/sst2/commit/main", True),
        ("/xet/s/v1/xorbs/default/a", True),
        ("/upload", True),
        ("/acme/sst2/upload", False),
        ("/upload/preview", False),
        ("/acme/upload-things", False),
        ("/api/models/acme/sst2/preupload/main", False),
        ("/login", False),
    ],
)
def test_which_routes_take_files(path, large):
    assert takes_files(path) is large


def test_the_headers_count_down_and_then_the_caller_has_to_wait():
    caller = client()
    left = [caller.get("/x").headers["RateLimit"].split(";")[1] for _ in range(3)]
    assert left == ["r=2", "r=1", "r=0"]
    refused = caller.get("/x")
    assert refused.status_code == 429
    wait = int(refused.headers["Retry-After"])
    assert 0 < wait <= 3600
    assert refused.headers["RateLimit"] == f'"api";r=0;t={wait}'
    assert refused.headers["RateLimit-Policy"] == '"fixed window";"api";q=3;w=3600'
    assert "Wait" in refused.json()["error"] == refused.headers["X-Error-Message"]
    assert caller.get("/healthz").status_code == 200


def test_kinds_and_addresses_are_counted_apart():
    app = limited()
    caller = client(app)
    assert [caller.get("/x").status_code for _ in range(4)][-1] == 429
    assert caller.post("/login").status_code == 200
    assert caller.post("/login").status_code == 429
    assert client(app, address="10.0.0.2").get("/x").status_code == 200


def test_addresses_of_one_network_of_ipv6_are_one_caller():
    app = limited()
    for last in range(3):
        assert client(app, address=f"2001:db8::{last}").get("/x").status_code == 200
    assert client(app, address="2001:db8::9").get("/x").status_code == 429
    assert client(app, address="2001:db8:0:1::9").get("/x").status_code == 200


def bearer(*words):
    return {"Authorization": " ".join(words)}


def test_what_was_accepted_counts_for_its_account_and_made_up_tokens_for_their_address():
    app = limited()
    caller = client(app)
    good = bearer("Bearer", "good")
    assert caller.get("/x", headers=good).status_code == 200  # counts for the address: the token is not known yet
    for number in range(2):
        assert caller.get("/x", headers=bearer("Bearer", f"made-up-{number}")).status_code == 401
    assert caller.get("/x", headers=bearer("Bearer", "made-up-9")).status_code == 429
    assert [caller.get("/x", headers=good).status_code for _ in range(4)] == [200, 200, 200, 429]


@pytest.mark.parametrize(
    "other",
    [
        bearer("Bearer", "", "good"),
        bearer("bearer", "good"),
        bearer("BEARER", "", "", "good", ""),
        bearer("Bearer", "better"),  # another token of the same account
        {"Cookie": f"theme=dark; {SESSION_COOKIE}=theirs"},
    ],
)
def test_one_account_is_one_caller_however_it_comes(other):
    app = limited(limits={"api": (4, 3600)})
    caller = client(app)
    good = bearer("Bearer", "good")
    for headers in (good, other):  # from an address each: neither is known yet
        assert client(app, address="10.9.9.9").get("/x", headers=headers).status_code == 200
    answers = [caller.get("/x", headers=headers).status_code for headers in (good, other, good, other, good, other)]
    assert answers[:3] == [200] * 3 and answers[-2:] == [429] * 2


def test_a_token_that_is_no_longer_accepted_counts_for_its_address(monkeypatch):
    app = limited()
    assert client(app).get("/x", headers=bearer("Bearer", "best")).status_code == 200
    monkeypatch.setattr(f"{__name__}.GOOD", GOOD[:2])
    thief = client(app, address="10.0.0.3")
    assert [thief.get("/x", headers=bearer("Bearer", "best")).status_code for _ in range(5)] == [401] * 4 + [429]
    assert client(app, address="10.0.0.4").get("/x", headers=bearer("Bearer", "good")).status_code == 200


@pytest.mark.parametrize(
    ("lines", "hops", "address"),
    [
        (["1.1.1.1"], 1, "1.1.1.1"),
        (["9.9.9.9, 1.1.1.1"], 1, "1.1.1.1"),
        (["9.9.9.9", "1.1.1.1"], 1, "1.1.1.1"),  # the caller's own line, and the proxy's
        (["9.9.9.9", "8.8.8.8, 1.1.1.1"], 1, "1.1.1.1"),
        (["9.9.9.9", "1.1.1.1, 2.2.2.2"], 2, "1.1.1.1"),
        (["1.1.1.1"], 2, "1.1.1.1"),
        (["1.1.1.1:5000"], 1, "1.1.1.1"),
        (["[2001:db8::1]:443"], 1, "2001:db8::/64"),
        (["2001:db8::1"], 1, "2001:db8::/64"),
        (["::ffff:1.1.1.1"], 1, "1.1.1.1"),
        (["unknown"], 1, "10.0.0.1"),
        ([""], 1, "10.0.0.1"),
        ([], 1, "10.0.0.1"),
    ],
)
def test_the_address_is_that_of_who_called_the_outermost_proxy(lines, hops, address):
    limiter = Limiter(FastAPI(), Settings(trust_forwarded=True, forwarded_hops=hops))
    headers = [(b"x-forwarded-for", line.encode()) for line in lines]
    assert limiter._address({"type": "http", "client": ("10.0.0.1", 1), "headers": headers}) == address


def test_the_last_forwarded_address_counts_only_where_a_proxy_is_trusted():
    forwarded = [{"X-Forwarded-For": f"1.2.3.{number}, 9.9.9.{number}"} for number in range(4)]
    caller = client(trust_forwarded=True)
    assert [caller.get("/x", headers=headers).status_code for headers in forwarded] == [200] * 4
    lying = [{"X-Forwarded-For": f"1.2.3.{number}, 9.9.9.9"} for number in range(4)]
    caller = client(trust_forwarded=True)
    assert [caller.get("/x", headers=headers).status_code for headers in lying][-1] == 429
    caller = client()
    assert [caller.get("/x", headers=headers).status_code for headers in forwarded][-1] == 429


def test_each_of_several_workers_counts_its_share():
    caller = client(workers=3, limits={"api": (6, 3600)})
    assert [caller.get("/x").status_code for _ in range(3)] == [200, 200, 429]


def test_without_limits_nothing_is_counted():
    caller = client(limits={})
    answers = [caller.get("/x") for _ in range(10)]
    assert {answer.status_code for answer in answers} == {200}
    assert "RateLimit" not in answers[0].headers


def test_a_new_window_forgets_the_old_one(monkeypatch):
    moment = 1_000_000_000
    monkeypatch.setattr(limits.time, "time", lambda: moment)
    caller = client(limits={"api": (1, 60)})
    assert [caller.get("/x").status_code for _ in range(2)] == [200, 429]
    moment += 60
    assert caller.get("/x").status_code == 200


def test_workers_on_postgres_count_together(postgres_cluster):
    url = postgres_cluster.url(postgres_cluster.create())

    async def work():
        db = Database(url)
        await migrate.upgrade(db)
        settings = Settings(db=url, workers=2, limits={"api": (100, 3600), "login": (3, 3600)})
        workers = [Limiter(FastAPI(), settings) for _ in range(2)]
        for worker in workers:
            worker.app.state.hub = type("Hub", (), {"db": db})
        logins = []
        for number in range(5):
            try:
                logins.append(await workers[number % 2]._count("login", "ip:a"))
            except limits.TooManyRequests:
                logins.append(None)
        refused = 0
        for number in range(120):
            try:
                await workers[number % 2]._count("api", "ip:a")
            except limits.TooManyRequests:
                refused += 1
        await db.close()
        return [entry is not None for entry in logins], refused

    logins, refused = asyncio.run(work())
    assert logins == [True, True, True, False, False]  # few are allowed: each is reported at once
    assert 18 <= refused <= 20 + 4  # many are: a worker reports every second one


def test_bodies_are_capped_where_no_files_are_taken(monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODY", 1000)
    caller = client(limits={})
    assert caller.post("/x", content=b"x" * 1000).json() == {"bytes": 1000}
    assert caller.post("/x", content=b"x" * 1001).status_code == 413
    assert caller.put("/_lfs/1/a", content=b"x" * 5000).json() == {"bytes": 5000}


def test_bodies_of_unknown_length_are_capped_too(monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODY", 1000)
    answer = client(limits={}).post("/x", content=(b"x" * 100 for _ in range(11)))
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json()["error"]
