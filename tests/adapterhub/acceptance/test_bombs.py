"""Does a small request that wants to become much work, or much memory, get a refusal at once?"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import lz4.frame
import pytest

from tests.adapterhub.acceptance import seed
from tests.adapterhub.acceptance.process import HubProcess, running
from tests.adapterhub.conftest import Makers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SECONDS, MEMORY = 2.0, 50  # of the processor's time: one, and room for a machine that is slow or busy; and MiB
REPO = "alice/target"
JSON = {"Content-Type": "application/json"}
Send = Callable[[httpx.Client], httpx.Response]


@pytest.fixture(scope="module")
def hub(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with running(hub_makers, tmp_path_factory.mktemp("bombs")) as hub:
        with hub.client() as alice:
            seed.push(alice, REPO)
            # What is loaded once does not count: YAML, Markdown, lz4.
            for send in (validate("---\na: [b]\n---\n# c\n"), xorb(chunk(b"x"))):
                send(alice)
        yield hub


# ---- ways to send ---------------------------------------------------------------------------------------------------


def post(path: str, body: bytes) -> Send:
    return lambda client: client.post(path, content=body, headers=JSON)


def commit(*lines: bytes) -> Send:
    return lambda client: seed.commit(client, REPO, b"\n".join((HEADER, *lines)))


def validate(card: str) -> Send:
    return lambda client: client.post("/api/validate-yaml", json={"content": card})


def file(path: str, data: bytes) -> bytes:
    return seed.lines({path: data}).splitlines()[1]


def raw(key: str, value: bytes) -> bytes:
    return b'{"key":"' + key.encode() + b'","value":' + value + b"}"


def xet(path: str, body: bytes) -> Send:
    def send(client: httpx.Client) -> httpx.Response:
        token = client.get(f"/api/models/{REPO}/xet-write-token/main").json()
        authorization = {"Authorization": f"Bearer {token['accessToken']}"}
        return client.post(f"{token['casUrl']}/v1/{path}", content=body, headers=authorization)

    return send


def xorb(body: bytes) -> Send:
    return xet(f"xorbs/default/{'0' * 64}", body)


def chunk(data: bytes, claimed: int | None = None) -> bytes:
    coded = lz4.frame.compress(data)
    size = len(data) if claimed is None else claimed
    return b"\0" + len(coded).to_bytes(3, "little") + b"\1" + size.to_bytes(3, "little") + coded


def tensors(header: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header


# ---- what is sent ---------------------------------------------------------------------------------------------------

HEADER = b'{"key":"header","value":{"summary":"x"}}'
NAMES = "abcdefghijkl"
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in pairwise(NAMES)
)
DEEP = b"[" * 100_000 + b"]" * 100_000
WIDE = b'{"a":[' + b"[]," * 600_000 + b"1]}"
WIDER = b'{"a":[' + b"[]," * 2_600_000 + b"1]}"
TEXTS = b'{"a":[' + b'"b",' * 1_500_000 + b"1]}"
SAME = {"path": "same.txt", "content": "", "encoding": "base64"}

BOMBS: dict[str, Send] = {
    "YAML whose aliases multiply": validate(f"---\n{LAUGHS}---\n"),
    "YAML in deep brackets": validate("---\na: " + "[" * 10_000 + "]" * 10_000 + "\n---\n"),
    "YAML in deep indents": validate("---\n" + "".join(" " * i + "a:\n" for i in range(300)) + "---\n"),
    "YAML of 900 kB": validate("---\n" + "a: b\n" * 180_000 + "---\n"),
    "deep JSON for the API": post("/api/v1/check", DEEP),
    "deep JSON for the protocol": post("/api/repos/create", DEEP),
    "deep JSON in a commit": commit(raw("file", DEEP)),
    "many lists for the API": post("/api/v1/check", WIDER),
    "many texts for the API": post("/api/v1/check", TEXTS),
    "many lists for the protocol": post("/api/repos/create", WIDE),
    "many lists to upload": post(f"/api/models/{REPO}/preupload/main", WIDER[:3_000_000]),
    "many lists for LFS": post(f"/{REPO}.git/info/lfs/objects/batch", WIDE),
    "many lists in a commit": commit(raw("file", WIDER)),
    "many lists in a commit's header": commit(raw("header", WIDER)),
    "a body of 9 MB": post("/api/v1/check", b" " * 9_000_000),
    "a line of 20 MB": commit(raw("file", b'{"path":"a.txt","content":"' + b"A" * (20 << 20) + b'"}')),
    "base64 that is none": commit(raw("file", b'{"path":"a.txt","content":"' + b"!" * 4_000_000 + b'"}')),
    "a commit of 100,000 files": commit(
        *[json.dumps({"key": "lfsFile", "value": {"path": f"{i}", "oid": "0" * 64}}).encode() for i in range(100_000)]
    ),
    "a commit of 25,000 files with their bytes": commit(
        *[file(f"{i}.txt", b"%d is a text of its own" % i) for i in range(25_000)]
    ),
    "100,000 files to upload": post(
        f"/api/models/{REPO}/preupload/main",
        json.dumps({"files": [{"path": f"{i}", "size": 1} for i in range(100_000)]}).encode(),
    ),
    "15,000 objects for LFS": post(
        f"/{REPO}.git/info/lfs/objects/batch",
        json.dumps(
            {"operation": "upload", "objects": [{"oid": f"{i:064x}", "size": 1} for i in range(15_000)]}
        ).encode(),
    ),
    "tensors in a deep header": commit(file("a.safetensors", tensors(DEEP))),
    "tensors in a wide header": commit(file("a.safetensors", tensors(WIDE))),
    "tensors in a header of 16 exabytes": commit(file("a.safetensors", tensors(b"{}", 2**64 - 1))),
    "lz4 of 200 MB in 800 kB": xorb(chunk(bytes(200 << 20), 128 << 10)),
    "lz4 of 15 MB that claims 1 kB": xorb(chunk(bytes(15 << 20), 1 << 10)),
    "a xorb of 1.1 GB in 8 MB": xorb(chunk(bytes(128 << 10)) * 9000),
    "a shard of noise": xet("shards", os.urandom(3 << 20)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_is_refused_at_once(hub: HubProcess, name: str) -> None:
    with hub.client() as alice:
        memory, seconds = hub.memory(), hub.seconds()
        hub.forget_peak()
        answer = BOMBS[name](alice)
        spent, grown = hub.seconds() - seconds, hub.peak() - memory
        assert 400 <= answer.status_code < 500, answer.text
        assert "error" in answer.text
        assert spent < SECONDS
        assert grown < MEMORY
        assert alice.get("/healthz").is_success


def test_cards_that_take_long_to_draw_are_shown_in_part(hub: HubProcess) -> None:
    """They are texts like any other, so they are stored; but nobody waits for them."""
    cards: Any = {"brackets": b"[" * 500_000, "stars": b"*a " * 100_000, "quotes": b">" * 100_000, "laughs": LAUGHS}
    with hub.client() as alice:
        for name, card in cards.items():
            text = card if isinstance(card, bytes) else f"---\n{card}---\n".encode()
            memory, seconds = hub.memory(), hub.seconds()
            hub.forget_peak()
            assert seed.commit(alice, REPO, seed.lines({"README.md": text})).is_success, name
            assert alice.get(f"/{REPO}").is_success
            assert hub.seconds() - seconds < 2 * SECONDS, name
            assert hub.peak() - memory < MEMORY, name


def test_nothing_of_them_is_left(hub: HubProcess) -> None:
    assert list((hub.data / "tmp").iterdir()) == []
