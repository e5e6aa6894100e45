"""Does one request, of somebody nobody knows, keep all others waiting?

Each is sent over a socket to a hub in a process of its own, while somebody else asks it for its health again and again.
The bounds leave room for a busy machine: what is refused here took the hub ten seconds to minutes.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest

from adapterhub.ops.slow_clients import MAX_FIELDS, MAX_HEAD
from tests.adapterhub.acceptance.process import HubProcess, running
from tests.adapterhub.conftest import Makers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SECONDS = 6.0  # that another request may wait
SENT = 64 << 20  # bytes that a client would send
BLOCK = b"a" * (1 << 16)
GET, POST = b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST /api/validate-yaml HTTP/1.1\r\nHost: x\r\n"
CHUNKS = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def hub(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with running(hub_makers, tmp_path_factory.mktemp("freezing")) as hub:
        yield hub


def connect(hub: HubProcess) -> socket.socket:
    host, port = hub.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def exchange(hub: HubProcess, first: bytes, block: bytes = b"", size: int = 0) -> bytes:
    """Sends bytes, then a block again and again until the hub answers or `size` bytes went; returns its answer."""
    with connect(hub) as connection:
        connection.sendall(first)
        for _ in range(size // max(len(block), 1)):
            if select.select([connection], [], [], 0)[0]:
                break
            connection.sendall(block)
        return connection.recv(1000)


@contextmanager
def others(hub: HubProcess) -> Iterator[list[float]]:
    """Asks for the hub's health while the block runs; how long each answer took."""
    waited: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        with closing(HTTPConnection(hub.url.removeprefix("http://"), timeout=120)) as client:
            while not (ended.is_set() and waited):
                began = time.monotonic()
                client.request("GET", "/healthz")
                assert client.getresponse().read() == b'{"status":"ok"}'
                waited.append(time.monotonic() - began)
                ended.wait(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waited
    finally:
        ended.set()
        thread.join(120)


HEADS: dict[str, tuple[bytes, bytes]] = {
    "an address": (b"GET /", BLOCK),
    "a field": (GET + b"X: ", BLOCK),
    "a field's name": (GET, BLOCK),
    "many fields": (GET, b"a:b\r\n" * 10_000),
    "a cookie": (GET + b"Cookie: ", b"a=b;" * (1 << 14)),
    "empty lines": (b"", b"\r\n" * (1 << 15)),
    "a trailer": (CHUNKS + b"2\r\n{}\r\n0\r\nX: ", BLOCK),
    "many fields in a trailer": (CHUNKS + b"2\r\n{}\r\n0\r\n", b"a:b\r\n" * 10_000),
    "what describes a chunk": (CHUNKS + b"2;", BLOCK),
    "what describes each chunk": (CHUNKS, b"1;" + b"a" * 2000 + b"\r\n \r\n"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_without_end_is_refused(hub: HubProcess, name: str) -> None:
    first, block = HEADS[name]
    with others(hub) as waited:
        answer = exchange(hub, first, block, SENT)
    assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), answer
    assert max(waited) < SECONDS


def padded(size: int) -> bytes:
    return GET + b"X: " + b"a" * (size - len(GET) - 7) + b"\r\n\r\n"


def chunked(body: bytes, length: int) -> bytes:
    pieces = [body[start : start + length] for start in range(0, len(body), length)]
    return CHUNKS + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


CARD = json.dumps({"content": "# A card\n" + "word " * 2000}).encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (padded(MAX_HEAD - 1000), 200),
        (padded(MAX_HEAD + 1000), 431),
        (GET + b"".join(b"X%d: a\r\n" % number for number in range(MAX_FIELDS - 1)) + b"\r\n", 200),
        (GET + b"".join(b"X%d: a\r\n" % number for number in range(MAX_FIELDS)) + b"\r\n", 431),
        (chunked(CARD, 1) + b"0\r\n\r\n", 200),  # slow, but a body
        (chunked(CARD, 1000) + b"0\r\nChecksum: 1\r\n\r\n", 200),
        (GET + b"\r\n" + GET + b"Connection: close\r\n\r\n", 200),
        (b"\r\n\r\n" + GET + b"\r\n", 200),
    ],
)
def test_ordinary_requests_are_answered(hub: HubProcess, sent: bytes, status: int) -> None:
    assert exchange(hub, sent).startswith(b"HTTP/1.1 %d " % status)


def test_a_trailer_does_not_reach_the_application(hub: HubProcess) -> None:
    """Whoever trusts a head, such as that of a proxy, must not be told otherwise behind the body."""
    sent = CHUNKS.replace(b"/api/validate-yaml", b"/api/whoami-v2").replace(b"POST", b"GET") + b"0\r\n"
    assert b" 401 " in exchange(hub, sent + b"Authorization: Bearer " + hub.tokens["alice"].encode() + b"\r\n\r\n")


# ---- what is quickly said and takes long ----------------------------------------------------------------------------


def check(header: str, size: int = 0) -> Callable[[httpx.Client], httpx.Response]:
    file = {"path": "adapter.safetensors", "size": size or len(header) + 8, "header": header}
    return lambda client: client.post("/api/v1/check", json={"files": [file]})


def tensors(number: int) -> str:
    entry = '"t%d":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    return "{" + ",".join(entry % (i, 4 * i, 4 * i + 4) for i in range(number)) + "}"


def many(name: str, number: int) -> Callable[[httpx.Client], httpx.Response]:
    return lambda client: client.get("/api/models?" + "&".join(f"{name}=a{i}" for i in range(number)))


BUSY: dict[str, tuple[Callable[[httpx.Client], httpx.Response], int]] = {
    "a header that names one of 99,000 tensors twice": (
        check("{" + ",".join(f'"t{i}":{{}}' for i in [*range(99_000), 98_999]) + "}"),
        200,
    ),
    "a header of 80,000 tensors": (check(tensors(80_000), len(tensors(80_000)) + 8 + 4 * 80_000), 200),
    "2,000 tags": (many("filter", 2000), 400),
    "10,000 tags in one": (lambda client: client.get("/api/models?filter=" + ",".join(map(str, range(10_000)))), 400),
    "2,000 words": (many("search", 2000), 400),
    "a form of many fields": (lambda client: client.post("/login", content=b"a&" * (4 << 20), headers=FORM), 400),
    "a form in one field": (lambda client: client.post("/login", content=b"%41" * 300_000, headers=FORM), 401),
}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUSY)
def test_work_is_done_beside_other_requests_or_not_at_all(hub: HubProcess, name: str) -> None:
    send, status = BUSY[name]
    with others(hub) as waited, httpx.Client(base_url=hub.url, trust_env=False, timeout=120) as client:
        answer = send(client)
    assert answer.status_code == status, answer.text[:500]
    assert max(waited) < SECONDS


@pytest.mark.slow
def test_many_passwords_at_once_take_turns(hub: HubProcess) -> None:
    """One hash takes 64 MiB: 32 at once took 640 and more."""
    answers: list[int] = []

    def log_in(number: int) -> None:
        form = {"name": f"nobody{number}", "password": "a guess"}
        answers.append(httpx.post(f"{hub.url}/login", data=form, trust_env=False, timeout=120).status_code)

    log_in(0)
    memory = hub.memory()
    hub.forget_peak()
    threads = [threading.Thread(target=log_in, args=(number,)) for number in range(1, 33)]
    with others(hub) as waited:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert answers == [401] * 33
    assert hub.peak() - memory < 200
    assert max(waited) < SECONDS


def test_who_would_wait_too_long_for_their_turn_is_told_at_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub import accounts
    from adapterhub.errors import Busy

    monkeypatch.setattr(accounts, "_MOST_WAITING", 0)
    with pytest.raises(Busy, match="in a minute"):
        run(accounts._in_turn(str))
    monkeypatch.setattr(accounts, "_MOST_WAITING", 1)
    assert run(accounts._in_turn(str)) == ""
