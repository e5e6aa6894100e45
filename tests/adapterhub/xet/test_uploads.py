"""Do uploads through Xet become ordinary files, and only those that are what they claim to be?"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from safetensors.numpy import save
from starlette.requests import ClientDisconnect

from adapterhub import accounts
from adapterhub.accounts import Principal
from adapterhub.db import schema
from adapterhub.db.schema import now
from adapterhub.errors import HubError
from adapterhub.hub import Hub
from adapterhub.repos import repos
from adapterhub.settings import Settings
from adapterhub.xet import codec, ingest, routes
from tests.adapterhub.xet import encoder
from tests.adapterhub.xet.encoder import Upload


class World:
    """A hub with two users, a repository of each, and a client for the Xet addresses."""

    def __init__(self, hub: Hub, client: httpx.AsyncClient, owned: dict[str, repos.Repo]) -> None:
        self.hub = hub
        self.client = client
        self.repos = owned

    def user(self, name: str) -> Principal:
        return Principal(NAMES.index(name) + 1, name, role="write", namespaces={name: "admin"})

    def token(self, name: str) -> tuple[str, dict[str, str]]:
        """The path of the Xet addresses and the headers to call them with."""
        answer = routes.token_answer(self.hub, self.user(name), self.repos[name])
        shown = json.loads(bytes(answer.body))
        assert answer.headers["X-Xet-Cas-Url"] == shown["casUrl"]
        assert answer.headers["X-Xet-Access-Token"] == shown["accessToken"]
        assert answer.headers["X-Xet-Token-Expiration"] == str(shown["exp"])
        return httpx.URL(shown["casUrl"]).path, {"Authorization": f"Bearer {shown['accessToken']}"}

    async def post(self, path: str, content: Any = b"", *, name: str = "alice", **headers: str) -> httpx.Response:
        base, authorization = self.token(name)
        return await self.client.post(base + path, content=content, headers={**authorization, **headers})

    async def send_xorbs(self, upload: Upload, *, name: str = "alice") -> list[bool]:
        answers = [await self.post(f"/v1/xorbs/default/{x}", body, name=name) for x, body in upload.xorbs.items()]
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        return [answer.json()["was_inserted"] for answer in answers]

    async def stored(self, sha256: str) -> bytes:
        return b"".join([data async for data in self.hub.blobs.open(sha256)])

    def left_over(self) -> list[Path]:
        return [path for path in self.hub.scratch.rglob("*") if path.is_file()]

    async def blobs(self) -> list[str]:
        return [name async for name in self.hub.blobs.names()]


NAMES = ("alice", "bob")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with two users and a repository of each."""
    folder = tmp_path_factory.mktemp("xet")

    async def create() -> None:
        hub = await Hub.open(Settings(data=folder))
        async with hub.db.engine.begin() as conn:
            await conn.run_sync(schema.metadata.create_all)
        async with hub.db.write() as conn:
            for name in NAMES:
                owner = await accounts.create_user(conn, name)
                await conn.execute(
                    sa.insert(schema.repo).values(
                        uid=name, owner_id=owner, namespace=name, name="m", name_key="m", key=f"{name}/m"
                    )
                )
        await hub.close()

    asyncio.run(create())
    return folder / "hub.db"


@asynccontextmanager
async def open_world(folder: Path, database: Path, **settings: Any) -> AsyncIterator[World]:
    shutil.copy(database, folder / "hub.db")
    hub = await Hub.open(Settings(data=folder, public_url="http://hub.test", **settings))
    app = FastAPI()
    app.state.hub = hub
    app.include_router(routes.router)

    @app.exception_handler(HubError)
    async def answer(_: Any, error: HubError) -> JSONResponse:
        return JSONResponse({"error": error.message}, error.status)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hub.test") as client:
        try:
            async with hub.db.read() as conn:
                owned = {name: await repos.by_id(conn, i + 1) for i, name in enumerate(NAMES)}
            yield World(hub, client, owned)
        finally:
            await hub.close()


Check = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def run(tmp_path: Path, database: Path) -> Callable[..., None]:
    """Runs a coroutine function on a new hub."""

    def runner(check: Check, **settings: Any) -> None:
        async def main() -> None:
            async with open_world(tmp_path, database, **settings) as world:
                await check(world)

        asyncio.run(main())

    return runner


def weights(count: int = 400_000, seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    return save({"a": values, "b": np.repeat(values[:10], count // 100)})


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("footer", [True, False])
def test_an_upload_becomes_a_file(run: Any, version: str, footer: bool):
    async def check(world: World) -> None:
        upload = Upload(weights(), footer=footer)
        assert all(await world.send_xorbs(upload))
        assert not any(await world.send_xorbs(upload))
        answer = await world.post(f"/{version}/shards", upload.shard(footer=footer))
        assert answer.status_code == 200
        if version == "v1":
            assert answer.json() == {"result": 1}
        else:
            lines = [json.loads(line) for line in answer.text.splitlines()]
            assert answer.headers["content-type"].startswith("application/x-ndjson")
            assert lines == [{"type": "committing", "stage": "syncing"}, {"type": "result"}]
        assert await world.stored(upload.sha256) == upload.data
        async with world.hub.db.read() as conn:
            (row,) = (await conn.execute(sa.select(schema.blob))).mappings().all()
            (use,) = (await conn.execute(sa.select(schema.blob_use))).mappings().all()
        assert (row["sha256"], row["size"], row["state"]) == (upload.sha256, len(upload.data), "ok")
        assert row["header"]["a"] == ["F32", [400_000]]
        assert (use["repo_id"], use["sha256"]) == (world.repos["alice"].id, upload.sha256)
        assert world.left_over() == []

    run(check)


def test_files_share_xorbs(run: Any):
    """The second file repeats chunks of the first one, as a client sends it after it has found them again."""

    async def check(world: World) -> None:
        first = Upload(weights(), per_xorb=8)
        await world.send_xorbs(first)
        chunks = [data for body in first.xorbs.values() for _, data in codec.read_chunks(body)]
        names = list(first.xorbs)
        parts = [(0, 2, 5), (0, 0, 1), (1, 7, 8), (0, 3, 4), (0, 3, 4)]
        picked = [chunk for xorb, a, b in parts for chunk in chunks[xorb * 8 + a : xorb * 8 + b]]
        second = Upload(b"")
        second.data = b"".join(picked)
        second.sha256 = hashlib.sha256(second.data).hexdigest()
        second.segments = [
            (codec.hash_from_hex(names[x]), sum(map(len, chunks[x * 8 + a : x * 8 + b])), a, b) for x, a, b in parts
        ]
        second.hash = codec.file_hash([encoder.leaf(chunk) for chunk in picked])
        answer = await world.post("/v1/shards", first.shard(second))
        assert answer.json() == {"result": 1}
        assert await world.stored(second.sha256) == second.data

    run(check, pickle_policy="allow")


def test_bytes_may_come_in_any_pieces(run: Any):
    async def check(world: World) -> None:
        upload = Upload(weights(), per_xorb=1000)
        ((name, body),) = upload.xorbs.items()

        async def pieces() -> AsyncIterator[bytes]:
            position = 0
            for size in [1, 7, 8, 9, 100_000, 3] * 1000:
                yield body[position : position + size]
                position += size

        assert (await world.post(f"/v1/xorbs/default/{name}", pieces())).json() == {"was_inserted": True}
        assert (await world.post("/v1/shards", upload.shard())).status_code == 200
        assert await world.stored(upload.sha256) == upload.data

    run(check)


def test_what_is_not_offered(run: Any):
    async def check(world: World) -> None:
        base, headers = world.token("alice")
        name = "0" * 64
        assert (await world.client.get(f"{base}/v1/chunks/default/{name}", headers=headers)).status_code == 404
        assert (await world.post(f"/v1/xorb-grants/default/{name}", b"{}")).status_code == 404
        assert (await world.post("/v1/telemetry", b"{}")).status_code == 200
        assert (await world.client.post("/v1/telemetry", content=b"{}")).status_code == 200

    run(check)


def forge(token: str) -> dict[str, str]:
    """Tokens that must not work, each made from one that does."""
    head, user, repo, expires, signature = token.split("_")
    return {
        "none": "",
        "another kind": "ahb_" + "a" * 51,
        "signature": "_".join((head, user, repo, expires, signature[:-1] + ("0" if signature[-1] != "0" else "1"))),
        "user": "_".join((head, "2", repo, expires, signature)),
        "repository": "_".join((head, user, "2", expires, signature)),
        "expiry": "_".join((head, user, repo, str(int(expires) + 1), signature)),
        "digits moved": "_".join((head, user + repo, "", expires, signature)),
    }


def test_forged_tokens(run: Any):
    async def check(world: World) -> None:
        upload = Upload(b"text")
        ((name, body),) = upload.xorbs.items()
        base, headers = world.token("alice")
        for token in forge(headers["Authorization"].removeprefix("Bearer ")).values():
            for path, content in (
                (f"/v1/xorbs/default/{name}", body),
                ("/v1/shards", upload.shard()),
                ("/v2/shards", b""),
            ):
                answer = await world.client.post(
                    base + path, content=content, headers={"Authorization": f"Bearer {token}"}
                )
                assert answer.status_code == 401, (token, path)
        expires, signature = world.hub.signer.sign("xet", 1, "alice", lifetime=-1)
        old = {"Authorization": f"Bearer xet_1_alice_{expires}_{signature}"}
        assert (await world.client.post(f"{base}/v1/shards", content=upload.shard(), headers=old)).status_code == 401
        assert not (world.hub.settings.data / "xorbs").exists()

    run(check)


def test_scopes_are_apart(run: Any):
    async def check(world: World) -> None:
        upload = Upload(b"text " * 100)
        ((name, body),) = upload.xorbs.items()
        base, headers = world.token("alice")
        others, _ = world.token("bob")
        week = ingest.scope_of(1, now() - timedelta(days=7))
        older = ingest.scope_of(1, now() - timedelta(days=14))
        status = {}
        for scope in (others, f"/xet/{older}", "/xet/x", f"/xet/{week}", base):
            answer = await world.client.post(f"{scope}/v1/xorbs/default/{name}", content=body, headers=headers)
            status[scope] = answer.status_code
        assert list(status.values()) == [401, 401, 401, 200, 200]
        assert (await world.post("/v1/shards", upload.shard(), name="bob")).status_code == 400
        assert (await world.post("/v1/shards", upload.shard())).status_code == 200

    run(check)


def test_scopes_of_weeks():
    def at(*date: int) -> datetime:
        return datetime(*date, tzinfo=timezone.utc)  # type: ignore[arg-type]

    assert ingest.scope_of(7, at(2026, 11, 21)) == "7-2026W47"
    assert ingest.scope_of(7, at(2027, 1, 1)) == "7-2026W53"
    assert ingest.accepts_scope("7-2026W53", 7, at(2027, 1, 10))
    assert not ingest.accepts_scope("7-2026W53", 7, at(2027, 1, 11))
    assert not ingest.accepts_scope("17-2026W53", 7, at(2027, 1, 1))
    # A xorb outlives the scope in which it can be named.
    assert at(2026, 11, 16) + ingest.KEPT >= at(2026, 11, 16) + timedelta(days=14)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda name, body: ("0" * 64, body), 400),
        (lambda name, body: (name, body[:-1]), 400),
        (lambda name, body: (name, b""), 400),
        (lambda name, body: ("0" * 64, b""), 400),
        (lambda name, body: (name, body + encoder.chunk(b"more", 0)), 400),
        (lambda name, body: (name[:-1], body), 400),
        (lambda name, body: ("." * 64, body), 400),
        (lambda name, body: (name.upper(), body), 400),
        (lambda name, body: (name, bytes(68 << 20)), 413),
        (lambda name, body: (name, encoder.chunk(bytes(128 << 10), 1) * 600), 413),
        (lambda name, body: (name, encoder.chunk(b"x", 0) * 20_000), 413),
        (lambda name, body: (name, encoder.chunk(b"x" * 100_000, 0) * 710), 413),
    ],
)
def test_wrong_xorbs_leave_nothing(run: Any, change: Callable[[str, bytes], tuple[str, bytes]], status: int):
    async def check(world: World) -> None:
        upload = Upload(b"text " * 1000)
        ((name, body),) = upload.xorbs.items()
        name, body = change(name, body)
        answer = await world.post(f"/v1/xorbs/default/{name}", body)
        assert answer.status_code == status
        assert len(answer.json()["error"]) > 20
        assert world.left_over() == []
        assert not list(world.hub.settings.data.glob("xorbs/*/*"))
        async with world.hub.db.read() as conn:
            assert (await conn.execute(sa.select(schema.xorb))).all() == []

    run(check)


def broken_shards(upload: Upload) -> dict[str, bytes]:
    """Shards that must be refused with 400, each with one fault."""

    def shard(**changes: Any) -> bytes:
        other = Upload(upload.data)
        for name, value in changes.items():
            setattr(other, name, value)
        return other.shard()

    (xorb, size, start, end), *rest = upload.segments
    return {
        "empty": b"",
        "no shard": b"x" * 500,
        "no files": encoder.TAG + b"\2" + bytes(15) + b"\xff" * 48,
        "cut off": upload.shard(footer=False)[:-30],
        "unknown xorb": shard(segments=[(bytes(32), size, start, end), *rest]),
        "file hash": shard(hash=bytes(31) + b"\1"),
        "length": shard(segments=[(xorb, size + 1, start, end), *rest]),
        "end": shard(segments=[(xorb, size, start, end + 1), *rest]),
        "far end": shard(segments=[(xorb, size, start, 0xFFFFFFFF), *rest]),
        "turned": shard(segments=[(xorb, size, end, start), *rest]),
        "nothing": shard(segments=[(xorb, 0, start, start), *upload.segments]),
        "order": shard(segments=upload.segments[::-1]),
        "missing part": shard(segments=rest),
    }


def test_wrong_shards_leave_nothing(run: Any):
    async def check(world: World) -> None:
        upload = Upload(weights(), per_xorb=3)
        await world.send_xorbs(upload)
        for fault, shard in broken_shards(upload).items():
            answer = await world.post("/v1/shards", shard)
            assert answer.status_code == 400, fault
            assert len(answer.json()["error"]) > 20, fault
            answer = await world.post("/v2/shards", shard)
            last = json.loads(answer.text.splitlines()[-1])
            assert last["type"] == "error", fault
            assert not last["retryable"], fault
        assert (await world.blobs(), world.left_over()) == ([], [])

    run(check)


def test_a_wrong_sha256_leaves_nothing(run: Any):
    async def check(world: World) -> None:
        upload = Upload(weights())
        await world.send_xorbs(upload)
        upload.sha256 = "ab" * 32
        answer = await world.post("/v1/shards", upload.shard())
        assert answer.status_code == 422
        answer = await world.post("/v2/shards", upload.shard())
        *_, last = [json.loads(line) for line in answer.text.splitlines()]
        assert (last["type"], last["retryable"]) == ("error", False)
        assert "SHA-256" in last["message"]
        assert (await world.blobs(), world.left_over()) == ([], [])

    run(check)


def test_what_the_hub_refuses_does_not_come_in(run: Any):
    async def check(world: World) -> None:
        upload = Upload(b"\x80\x04\x95" + bytes(200_000))
        await world.send_xorbs(upload)
        answer = await world.post("/v1/shards", upload.shard())
        assert answer.status_code == 422
        assert "pickle" in answer.json()["error"]
        assert await world.blobs() == []

    run(check)


def test_files_that_are_too_large(run: Any):
    """A shard can name the same chunks again and again: what counts is the file they make."""

    async def check(world: World) -> None:
        upload = Upload(b"x" * 100_000, per_xorb=1000)
        await world.send_xorbs(upload)
        upload.segments *= 100
        answer = await world.post("/v1/shards", upload.shard())
        assert answer.status_code == 413

    run(check, max_file=1_000_000)


def test_who_may_not_write_pays_for_what_they_upload(run: Any):
    async def check(world: World) -> None:
        upload = Upload(weights())
        await world.send_xorbs(upload, name="bob")
        base, _ = world.token("bob")
        token = json.loads(bytes(routes.token_answer(world.hub, world.user("bob"), world.repos["alice"]).body))
        headers = {"Authorization": f"Bearer {token['accessToken']}"}
        answer = await world.client.post(base + "/v1/shards", content=upload.shard(), headers=headers)
        assert answer.json() == {"result": 1}
        async with world.hub.db.read() as conn:
            (use,) = (await conn.execute(sa.select(schema.blob_use))).mappings().all()
        assert (use["repo_id"], use["payer_id"]) == (world.repos["alice"].id, world.user("bob").id)

    run(check)


def test_xorbs_fill_a_quota(run: Any):
    async def check(world: World) -> None:
        await world.send_xorbs(Upload(b"x" * 100_000, per_xorb=1000))
        ((name, body),) = Upload(b"y" * 10, per_xorb=1000).xorbs.items()
        answer = await world.post(f"/v1/xorbs/default/{name}", body)
        assert answer.status_code == 403
        await world.send_xorbs(Upload(b"y" * 10, per_xorb=1000), name="bob")

    run(check, quota=100_000)


def test_a_xorb_is_refused_by_its_announced_size_and_by_its_own(run: Any):
    async def check(world: World) -> None:
        async def limit(quota: int) -> None:
            async with world.hub.db.write() as conn:
                mine = schema.account.c.id == world.user("alice").id
                await conn.execute(sa.update(schema.account).where(mine).values(quota=quota))

        upload = Upload(b"x" * 100_000, per_xorb=1000, schemes=(1,))
        ((name, body),) = upload.xorbs.items()
        await limit(len(body) - 1)
        assert (await world.post(f"/v1/xorbs/default/{name}", body)).status_code == 403
        await limit(99_999)  # what is announced is compressed
        assert (await world.post(f"/v1/xorbs/default/{name}", body)).status_code == 403
        assert world.left_over() == [] and not list((world.hub.settings.data / "xorbs").rglob(name))
        await limit(100_000)
        assert (await world.post(f"/v1/xorbs/default/{name}", body)).status_code == 200

    run(check)


def test_a_shard_is_refused_by_the_sizes_of_its_files(run: Any, monkeypatch: pytest.MonkeyPatch):
    async def check(world: World) -> None:
        upload = Upload(b"x" * 100_000, per_xorb=1000)
        await world.send_xorbs(upload)
        upload.segments *= 2
        upload.hash = codec.file_hash([encoder.leaf(b"x")])  # not looked at: no chunk is read
        monkeypatch.setattr(ingest, "_check_file", lambda *_: None)
        monkeypatch.setattr(ingest, "_read_file", None)
        answer = await world.post("/v1/shards", upload.shard())
        assert answer.status_code == 403 and "quota" in answer.json()["error"]

    run(check, quota=150_000)


def test_a_deleted_repository_takes_nothing(run: Any):
    async def check(world: World) -> None:
        upload = Upload(weights())
        await world.send_xorbs(upload)
        async with world.hub.db.write() as conn:
            await conn.execute(sa.delete(schema.repo).where(schema.repo.c.id == world.repos["alice"].id))
        assert (await world.post("/v1/shards", upload.shard())).status_code == 404

    run(check)


def test_sweep(run: Any):
    async def check(world: World) -> None:
        upload = Upload(weights(), per_xorb=5)
        await world.send_xorbs(upload)
        assert await ingest.sweep(world.hub, now() + timedelta(days=14)) == 0
        assert (await world.post("/v1/shards", upload.shard())).status_code == 200
        assert await ingest.sweep(world.hub, now() + timedelta(days=15, minutes=1)) == len(upload.xorbs)
        assert list((world.hub.settings.data / "xorbs").rglob("*")) == []
        answer = await world.post("/v1/shards", upload.shard())
        assert answer.status_code == 400
        assert re.search("HF_HUB_DISABLE_XET=1", answer.json()["error"])
        assert await world.stored(upload.sha256) == upload.data
        assert all(await world.send_xorbs(upload))

    run(check)


def test_a_stream_that_breaks_leaves_nothing(run: Any):
    async def check(world: World) -> None:
        ((name, body),) = Upload(weights(), per_xorb=1000).xorbs.items()

        async def breaking() -> AsyncIterator[bytes]:
            yield body[: len(body) // 2]
            raise ClientDisconnect

        scope = ingest.scope_of(1, now())
        with pytest.raises(ClientDisconnect):
            await ingest.store_xorb(world.hub, scope, name, breaking())
        assert world.left_over() == []

    run(check)
