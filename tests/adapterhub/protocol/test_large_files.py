"""Do large files come in by signed addresses only, as announced, and leave nothing behind where they do not?"""

from __future__ import annotations

import hashlib
import time
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
import sqlalchemy as sa

from adapterhub.db import schema
from adapterhub.hub import Hub
from adapterhub.settings import MiB
from tests.adapterhub.conftest import HubServer
from tests.adapterhub.protocol.wire import batch, commit, create, file, large, post_commit, send, text, upload_of

DATA = text(3 * MiB)
pytestmark = pytest.mark.parametrize("shared_hub_server", [{"multipart_bytes": 2 * MiB}], indirect=True)


@pytest.fixture(scope="module")
def repo(shared_hub_server: HubServer) -> str:
    with shared_hub_server.client() as client:
        return create(client, "alice/large", private=True)


def put(address: str, content: bytes) -> httpx.Response:
    return httpx.put(address, content=content, trust_env=False)


def changed(address: str, **query: object) -> str:
    """The address with other values in its query; None takes one out."""
    parts = urlsplit(address)
    old = {name: values[0] for name, values in parse_qs(parts.query).items()}
    new = {name: value for name, value in {**old, **query}.items() if value is not None}
    return parts._replace(query=urlencode(new)).geturl()


def assert_nothing_kept(server: HubServer, *data: bytes) -> None:
    """Neither a blob, nor its row, nor anything in the scratch folder is left."""

    async def names(hub: Hub) -> set[str]:
        return {name async for name in hub.blobs.names()}

    async def rows(hub: Hub) -> set[str]:
        async with hub.db.read() as conn:
            return set((await conn.execute(sa.select(schema.blob.c.sha256))).scalars())

    digests = {hashlib.sha256(item).hexdigest() for item in data}
    assert not digests & (server.call(names) | server.call(rows))
    assert not [path for path in server.settings.scratch.rglob("*") if path.is_file()]


# ---- addresses ------------------------------------------------------------------------------------------------------

FORGERIES: dict[str, dict[str, Any]] = {
    "no signature": {"sig": None},
    "empty signature": {"sig": ""},
    "other signature": {"sig": "0" * 64},
    "not ASCII": {"sig": "\u00e9" * 64},
    "later": {"exp": int(time.time()) + 10**6},
    "no end": {"exp": None},
    "end is no number": {"exp": "soon"},
    "end is huge": {"exp": "9" * 5000},
    "other size": {"size": 5},
    "no size": {"size": None},
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES)
def test_forged_addresses_are_refused(shared_hub_server: HubServer, repo: str, change: dict[str, Any]) -> None:
    whole = text(MiB, "forged")
    with shared_hub_server.client() as client:
        single, parts = upload_of(client, repo, whole)["href"], upload_of(client, repo, DATA)
    size = {"size": None} if change == {"size": None} else change
    answers = [put(changed(single, **change), whole), put(changed(parts["header"]["1"], **size), DATA[: 2 * MiB])]
    if "size" not in change:
        answers.append(httpx.post(changed(parts["href"], **change), json={}, trust_env=False))
    assert {answer.status_code for answer in answers} == {403}
    assert all(answer.json()["error"] for answer in answers)
    assert_nothing_kept(shared_hub_server, whole, DATA)


def test_signatures_do_not_fit_other_addresses(shared_hub_server: HubServer, repo: str) -> None:
    one, two = text(MiB, "one"), text(MiB, "two")
    with shared_hub_server.client() as client:
        other = create(client, "alice/large-too")
        first, second = upload_of(client, repo, one)["href"], upload_of(client, repo, two)["href"]
        elsewhere, parts = upload_of(client, other, one)["href"], upload_of(client, repo, DATA)["header"]
        query = urlsplit(first).query
        for address, data in (
            (f"{second.split('?')[0]}?{query}", two),  # another file
            (f"{elsewhere.split('?')[0]}?{query}", one),  # another repository
            (f"{parts['2'].split('?')[0]}?{urlsplit(parts['1']).query}", DATA[: 2 * MiB]),  # another part
            (f"{parts['1'].split('?')[0]}?{query}", DATA[: 2 * MiB]),  # another kind of address
        ):
            assert put(address, data).status_code == 403, address
        blob = f"{shared_hub_server.url}/_blob/{hashlib.sha256(one).hexdigest()}?{query}"
        assert client.get(blob).status_code == 403
    assert_nothing_kept(shared_hub_server, one, two)


def test_an_address_is_of_no_use_for_a_later_repository(shared_hub_server: HubServer) -> None:
    data = text(MiB, "later")
    with shared_hub_server.client("bob") as client:
        address = upload_of(client, create(client, "bob/earlier"), data)["href"]
        client.request(
            "DELETE", "/api/repos/delete", json={"name": "earlier", "organization": "bob"}
        ).raise_for_status()
        create(client, "bob/earlier")
        assert put(address, data).status_code == 404
    assert_nothing_kept(shared_hub_server, data)


def test_addresses_expire(shared_hub_server: HubServer, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = text(MiB, "late")
    with shared_hub_server.client() as client:
        address, parts = upload_of(client, repo, data)["href"], upload_of(client, repo, DATA)
    now = time.time()
    monkeypatch.setattr("adapterhub.signing.time.time", lambda: now + 3601)
    late = put(address, data)
    monkeypatch.setattr("adapterhub.signing.time.time", lambda: now + 24 * 3600 + 1)
    answers = [late, put(parts["header"]["1"], DATA[: 2 * MiB]), httpx.post(parts["href"], json={}, trust_env=False)]
    monkeypatch.undo()
    assert [answer.status_code for answer in answers] == [403, 403, 403]
    assert "expired" in late.json()["error"]
    assert_nothing_kept(shared_hub_server, data)


# ---- bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"), [(DATA[:-1] + b"x", 422), (DATA[:-1], 422), (DATA + b"x", 413), (b"", 422)]
)
def test_other_bytes_than_announced_are_refused(
    shared_hub_server: HubServer, repo: str, sent: bytes, status: int
) -> None:
    announced = text(MiB, "announced")
    sent = sent[-len(announced) :] if len(sent) == len(DATA) else sent[2 * MiB :]
    with shared_hub_server.client() as client:
        address = upload_of(client, repo, announced)["href"]
        answer = put(address, sent)
        assert answer.status_code == status and answer.json()["error"]
        answer = post_commit(client, repo, large("x.txt", announced))
        assert answer.status_code == 400
    assert_nothing_kept(shared_hub_server, announced, sent)


def test_other_bytes_in_chunks_of_unknown_number(shared_hub_server: HubServer, repo: str) -> None:
    announced = text(MiB, "chunked")
    with shared_hub_server.client() as client:
        address = upload_of(client, repo, announced)["href"]
    endless = httpx.put(address, content=iter([announced, b"more" * 1000]), trust_env=False)
    assert endless.status_code == 413
    assert_nothing_kept(shared_hub_server, announced)


@pytest.mark.parametrize("data", [b"\x80\x04\x95" + bytes(MiB), b"\x93NUMPY" + bytes(MiB), bytes(MiB)])
def test_unknown_and_dangerous_kinds_are_refused(shared_hub_server: HubServer, repo: str, data: bytes) -> None:
    with shared_hub_server.client() as client:
        answer = put(upload_of(client, repo, data)["href"], data)
    assert answer.status_code == 422 and "safetensors" in answer.json()["error"]
    assert_nothing_kept(shared_hub_server, data)


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_parts(shared_hub_server: HubServer, repo: str) -> None:
    data = text(5 * MiB, "parts")
    with shared_hub_server.client() as client:
        upload = upload_of(client, repo, data)
        assert set(upload["header"]) == {"chunk_size", "1", "2", "3"}
        step = int(upload["header"]["chunk_size"])
        early = client.post(upload["href"], json={})
        assert early.status_code == 400 and "1, 2, 3" in early.json()["error"]
        for number in (3, 1, 2, 1):  # in any order, and again
            answer = put(upload["header"][str(number)], data[(number - 1) * step : number * step])
            assert answer.status_code == 200 and answer.headers["etag"]
        assert put(upload["header"]["1"], b"short").status_code == 400
        assert put(upload["header"]["3"], data[: 2 * MiB]).status_code == 413
        assert client.post(upload["href"], json={"oid": "ignored", "parts": []}).status_code == 200
        assert client.post(upload["href"], json={}).status_code == 404
        commit(client, repo, large("parts.txt", data))
        assert client.get(f"/{repo}/resolve/main/parts.txt").content == data
    assert not list(shared_hub_server.settings.scratch.iterdir())


def test_parts_of_other_bytes_are_refused(shared_hub_server: HubServer, repo: str) -> None:
    data = text(3 * MiB, "announced parts")
    with shared_hub_server.client() as client:
        upload = upload_of(client, repo, data)
        put(upload["header"]["1"], data[: 2 * MiB])
        put(upload["header"]["2"], data[: 1 * MiB])
        answer = client.post(upload["href"], json={})
    assert answer.status_code == 422
    assert_nothing_kept(shared_hub_server, data)


# ---- what may be announced ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"oid": "0" * 63}, 400),
        ({"oid": "../../etc/passwd"}, 400),
        ({"oid": "A" * 64}, 400),
        ({"size": -1}, 413),
        ({"size": 1 << 60}, 413),
        ({"size": True}, 413),
        ({"size": "9"}, 413),
    ],
    ids=str,
)
def test_bad_announcements(shared_hub_server: HubServer, repo: str, change: dict[str, Any], status: int) -> None:
    with shared_hub_server.client() as client:
        answer = batch(client, repo, DATA, **change)
    assert answer.status_code == status and answer.json()["error"]


def test_a_file_that_is_here_need_not_be_sent(shared_hub_server: HubServer, repo: str) -> None:
    data = text(MiB, "present")
    with shared_hub_server.client() as client:
        send(client, repo, data)
        assert "actions" not in batch(client, repo, data).json()["objects"][0]
        verify = f"/{repo}.git/info/lfs/objects/verify"
        announced = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
        assert client.post(verify, json=announced).status_code == 200
        assert client.post(verify, json={**announced, "size": 5}).status_code == 404
        assert client.post(verify, json={**announced, "oid": "0" * 64}).status_code == 404


def test_quotas(shared_hub_server: HubServer) -> None:
    async def limit(hub: Hub) -> None:
        async with hub.db.write() as conn:
            query = sa.update(schema.account).where(schema.account.c.name == "bob")
            await conn.execute(query.values(quota=2 * MiB))

    one, two, three = text(MiB + 5, "q1"), text(600_000, "q2"), text(600_000, "q3")
    shared_hub_server.call(limit)
    with shared_hub_server.client("bob") as client:
        repo = create(client, "bob/full")
        send(client, repo, one)
        first, second = upload_of(client, repo, two)["href"], upload_of(client, repo, three)["href"]
        put(first, two).raise_for_status()
        refused = put(second, three)  # there was room for either when they were announced
        assert refused.status_code == 403 and "quota" in refused.json()["error"]
        small = post_commit(client, repo, file("a.txt", text(300_000, "q4")), file("b.txt", text(299_999)))
        assert small.status_code == 403
        commit(client, repo, file("tiny.txt", b"fits"), large("one.txt", one))
    assert_nothing_kept(shared_hub_server, three)
