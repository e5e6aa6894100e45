"""Do bytes count for the quota of who brought them, and of the owner once they are merged?"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import httpx
import pytest
import sqlalchemy as sa

from adapterhub.db import schema
from adapterhub.db.schema import now
from adapterhub.hub import Hub
from adapterhub.ops import gc
from adapterhub.settings import MiB
from tests.adapterhub.conftest import HubServer
from tests.adapterhub.protocol.wire import batch, commit, create, file, large, post_commit, send, text, upload_of

pytestmark = pytest.mark.parametrize("shared_hub_server", [{"multipart_bytes": 2 * MiB}], indirect=True)


def used(client: httpx.Client, name: str) -> int:
    """What a namespace pays for, as it sees it itself."""
    return int(client.get(f"/api/v1/usage/{name}").raise_for_status().json()["bytes"])


@contextmanager
def room(server: HubServer, name: str, left: int) -> Iterator[None]:
    """While the block runs, an account has room for so many more bytes."""

    async def limit(hub: Hub, quota: int | None) -> None:
        async with hub.db.write() as conn:
            query = sa.update(schema.account).where(schema.account.c.name == name)
            await conn.execute(query.values(quota=quota))

    with server.client("alice" if name == "acme" else name) as client:
        held = used(client, name)
    server.call(lambda hub: limit(hub, held + left))
    yield
    server.call(lambda hub: limit(hub, None))


def propose(client: httpx.Client, repo: str, *lines: dict[str, object]) -> int:
    answer = post_commit(client, repo, *lines, create_pr="1")
    assert answer.status_code == 200, answer.text
    return int(answer.json()["pullRequestUrl"].rsplit("/", 1)[1])


def merge(client: httpx.Client, repo: str, number: int) -> httpx.Response:
    return client.post(f"/api/models/{repo}/discussions/{number}/merge")


@pytest.mark.parametrize("way", ["whole", "in parts", "in the commit"])
def test_a_proposal_counts_for_its_author_until_it_is_merged(shared_hub_server: HubServer, way: str) -> None:
    size = 3 * MiB if way == "in parts" else 900_000
    data = text(size, way)
    with shared_hub_server.client() as alice, shared_hub_server.client("bob") as bob:
        repo = create(alice, f"alice/proposed-{way.replace(' ', '-')}")
        before = used(alice, "alice"), used(bob, "bob")
        if way == "whole":
            send(bob, repo, data)
        elif way == "in parts":
            upload = upload_of(bob, repo, data)
            for number in ("1", "2"):
                part = data[(int(number) - 1) * 2 * MiB :][: 2 * MiB]
                httpx.put(upload["header"][number], content=part, trust_env=False).raise_for_status()
            httpx.post(upload["href"], json={}, trust_env=False).raise_for_status()
        line = file("x.txt", data) if way == "in the commit" else large("x.txt", data)
        number = propose(bob, repo, line)
        assert (used(alice, "alice"), used(bob, "bob")) == (before[0], before[1] + size)
        assert merge(alice, repo, number).status_code == 200
        assert (used(alice, "alice"), used(bob, "bob")) == (before[0] + size, before[1])


def test_an_address_pays_for_whom_it_was_made(shared_hub_server: HubServer) -> None:
    data = text(900_000, "payer")
    with shared_hub_server.client() as alice, shared_hub_server.client("bob") as bob:
        repo = create(alice, "alice/payer")
        address = httpx.URL(upload_of(bob, repo, data)["href"])
        for payer in ("0", "1"):
            changed = address.copy_set_param("payer", payer)
            assert httpx.put(changed, content=data, trust_env=False).status_code == 403


def test_members_upload_for_the_owner(shared_hub_server: HubServer) -> None:
    data = text(900_000, "member")
    with shared_hub_server.client() as alice:
        repo = create(alice, "acme/members")
        before = used(alice, "alice"), used(alice, "acme")
        propose(alice, repo, file("x.txt", data))
        assert (used(alice, "alice"), used(alice, "acme")) == (before[0], before[1] + len(data))


def test_a_member_who_brings_the_same_bytes_to_a_branch_takes_them_over(shared_hub_server: HubServer) -> None:
    data = text(900_000, "same")
    with shared_hub_server.client() as alice, shared_hub_server.client("bob") as bob:
        repo = create(alice, "alice/same")
        before = used(alice, "alice"), used(bob, "bob")
        propose(bob, repo, file("x.txt", data))
        propose(alice, repo, file("y.txt", data))
        assert (used(alice, "alice"), used(bob, "bob")) == (before[0], before[1] + len(data))
        commit(alice, repo, file("x.txt", data))
        assert (used(alice, "alice"), used(bob, "bob")) == (before[0] + len(data), before[1])


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_a_branch_or_tag_at_a_proposal_takes_it_over(shared_hub_server: HubServer, kind: str) -> None:
    data = text(900_000, kind)
    with shared_hub_server.client() as alice, shared_hub_server.client("bob") as bob:
        repo = create(alice, f"alice/at-a-{kind}")
        before = used(alice, "alice"), used(bob, "bob")
        start = f"refs/pr/{propose(bob, repo, file('x.txt', data))}"

        def make() -> httpx.Response:
            if kind == "branch":
                return alice.post(f"/api/models/{repo}/branch/new", json={"startingPoint": start})
            return alice.post(f"/api/models/{repo}/tag/{start.replace('/', '%2F')}", json={"tag": "new"})

        with room(shared_hub_server, "alice", 1000):
            assert make().status_code == 403
        assert make().is_success
        assert (used(alice, "alice"), used(bob, "bob")) == (before[0] + len(data), before[1])


def test_a_full_owner_takes_proposals_but_merges_none(shared_hub_server: HubServer) -> None:
    with shared_hub_server.client() as alice, shared_hub_server.client("bob") as bob:
        repo = create(alice, "alice/full")
        with room(shared_hub_server, "alice", 1000):
            number = propose(bob, repo, file("x.txt", text(900_000, "full")))
            refused = merge(alice, repo, number)
            assert refused.status_code == 403 and "quota" in refused.json()["error"], refused.text
            assert alice.get(f"/api/models/{repo}/discussions/{number}").json()["status"] == "open"
        assert merge(alice, repo, number).status_code == 200


def test_a_full_author_proposes_nothing(shared_hub_server: HubServer) -> None:
    with shared_hub_server.client() as alice, shared_hub_server.client("bob") as bob:
        repo = create(alice, "alice/roomy")
        with room(shared_hub_server, "bob", 1000):
            refused = post_commit(bob, repo, file("x.txt", text(900_000, "no room")), create_pr="1")
            assert refused.status_code == 403 and "'bob' holds" in refused.json()["error"], refused.text
            propose(bob, repo, file("x.txt", b"fits"))


def test_bytes_of_another_repository_are_paid_for_too(shared_hub_server: HubServer) -> None:
    """They need not be uploaded, only named."""
    data = text(1_200_000, "named")
    with shared_hub_server.client() as alice, shared_hub_server.client("bob") as bob:
        send(alice, create(alice, "alice/source"), data)
        repo = create(bob, "bob/named")
        with room(shared_hub_server, "bob", 1000):
            refused = post_commit(bob, repo, large("x.txt", data))
            assert refused.status_code == 403 and "quota" in refused.json()["error"], refused.text
        commit(bob, repo, large("x.txt", data))


def test_what_is_paid_for_already_needs_no_room(shared_hub_server: HubServer) -> None:
    data = text(1_200_000, "again")
    with shared_hub_server.client("bob") as bob:
        repo = create(bob, "bob/again")
        send(bob, repo, data)
        commit(bob, repo, large("x.txt", data))
        with room(shared_hub_server, "bob", -5):
            commit(bob, create(bob, "bob/again-too"), large("y.txt", data))
            assert post_commit(bob, repo, file("new.txt", b"new")).status_code == 403


# ---- what is announced ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [False, True])
def test_no_address_is_given_for_what_does_not_fit(shared_hub_server: HubServer, parts: bool) -> None:
    async def uploads(hub: Hub) -> int:
        async with hub.db.read() as conn:
            return len((await conn.execute(sa.select(schema.upload.c.id))).all())

    with shared_hub_server.client("bob") as bob:
        repo = create(bob, f"bob/announced-{parts}")
        with room(shared_hub_server, "bob", 2 * MiB):
            before = shared_hub_server.call(uploads)
            refused = batch(bob, repo, text(3 * MiB, "announced"), parts=parts)
            assert refused.status_code == 403 and "quota" in refused.json()["error"], refused.text
            assert shared_hub_server.call(uploads) == before
            assert batch(bob, repo, text(MiB, "announced"), parts=parts).status_code == 200


def test_the_sizes_of_all_files_are_looked_at_before_any_is_sent(shared_hub_server: HubServer) -> None:
    def ask(client: httpx.Client, repo: str, *sizes: int, **query: str) -> int:
        files = [{"path": f"{i}.txt", "size": size, "sample": ""} for i, size in enumerate(sizes)]
        return client.post(f"/api/models/{repo}/preupload/main", json={"files": files}, params=query).status_code

    data = text(1_200_000, "there")
    with shared_hub_server.client() as alice, shared_hub_server.client("bob") as bob:
        repo = create(bob, "bob/asked")
        send(bob, repo, data)
        commit(bob, repo, large("there.txt", data))
        with room(shared_hub_server, "bob", 1000):
            assert ask(bob, repo, 600, 400) == 200
            assert ask(bob, repo, 600, 401) == 403
            assert ask(bob, repo, len(data), 1000) == 200  # it may be the one that is there, under another name
            assert ask(bob, create(alice, "alice/asked"), 1001, create_pr="1") == 403
            assert ask(alice, repo, 1001) == 403


def test_parts_count_from_when_they_are_announced(shared_hub_server: HubServer) -> None:
    """A hub whose disk is filled by uploads that are never completed is full all the same."""
    first, second = text(5 * MiB, "announced"), text(5 * MiB, "another")
    with shared_hub_server.client("bob") as bob:
        repo = create(bob, "bob/parts")
        before = used(bob, "bob")
        with room(shared_hub_server, "bob", 6 * MiB):
            upload = upload_of(bob, repo, first)
            assert used(bob, "bob") == before + len(first)
            for more in (batch(bob, repo, second), batch(bob, repo, second, parts=False)):
                assert more.status_code == 403 and "do not fit" in more.text
            again = upload_of(bob, repo, first)  # a client that was cut off goes on, and pays once
            assert httpx.URL(again["href"]).path == httpx.URL(upload["href"]).path
            assert used(bob, "bob") == before + len(first)
            for number in range(3):
                part = first[2 * MiB * number :][: 2 * MiB]
                httpx.put(again["header"][str(number + 1)], content=part, trust_env=False).raise_for_status()
            httpx.post(again["href"], json={}, trust_env=False).raise_for_status()
            assert used(bob, "bob") == before + len(first)
            commit(bob, repo, large("first.txt", first))
            assert used(bob, "bob") == before + len(first)


def test_parts_that_were_given_up_are_given_back(shared_hub_server: HubServer) -> None:
    data = text(3 * MiB, "given up")

    async def end(hub: Hub) -> None:
        async with hub.db.write() as conn:
            await conn.execute(sa.update(schema.upload).values(expires=now() - timedelta(seconds=1)))
        await gc.expire(hub)

    with shared_hub_server.client("bob") as bob:
        repo = create(bob, "bob/given-up")
        before = used(bob, "bob")
        upload = upload_of(bob, repo, data)
        httpx.put(upload["header"]["1"], content=data[: 2 * MiB], trust_env=False).raise_for_status()
        scratch = shared_hub_server.settings.scratch
        assert [path.stat().st_size for path in scratch.glob("parts-*/1")] == [2 * MiB]
        shared_hub_server.call(end)
        assert not [*scratch.glob("parts-*")] and used(bob, "bob") == before
        late = httpx.put(upload["header"]["2"], content=data[2 * MiB :], trust_env=False)
        assert late.status_code == 404


def test_files_that_arrive_at_once_must_fit_together(shared_hub_server: HubServer) -> None:
    """Each has an address, which was given while there was room for it alone."""
    files = [text(900_000, f"at once {number}") for number in range(3)]

    def slowly(data: bytes, ended: threading.Event) -> Iterator[bytes]:
        yield data[:1000]
        ended.wait(30)
        yield data[1000:]

    with shared_hub_server.client("bob") as bob, room(shared_hub_server, "bob", 2_000_000):
        repo = create(bob, "bob/at-once")
        addresses = [upload_of(bob, repo, data, parts=False)["href"] for data in files]
        ended = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            running = [
                pool.submit(httpx.put, address, content=slowly(data, ended), trust_env=False, timeout=60)
                for address, data in zip(addresses[:2], files)
            ]
            try:
                until = time.monotonic() + 30
                while len([*shared_hub_server.settings.scratch.glob("in-*")]) < 2 and time.monotonic() < until:
                    time.sleep(0.02)
                refused = httpx.put(addresses[2], content=files[2], trust_env=False)
            finally:
                ended.set()
            assert refused.status_code == 403 and "do not fit" in refused.text
            assert [done.result().status_code for done in running] == [200, 200]
