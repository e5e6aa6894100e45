"""Servers that are killed, disks that are full, and many writers at once: nothing that was acknowledged is lost.

`ADAPTERHUB_CRASHES=200` sets the number of kills.
"""

import asyncio
import base64
import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from adapterhub import ingest
from adapterhub.hub import Hub
from adapterhub.ops import fsck
from adapterhub.serve import PREFIX, serve, text_of

CRASHES = int(os.environ.get("ADAPTERHUB_CRASHES", "5"))
REPO = "acme/crash"


class Uploader:
    """Uploads by large file storage and commits, over and over, and remembers what was acknowledged."""

    def __init__(self, url, token, chance):
        headers = {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(base_url=url, headers=headers, timeout=20, trust_env=False)
        self.chance = chance
        self.acknowledged = []  # (commit, path, sha256)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def upload(self, data):
        oid = hashlib.sha256(data).hexdigest()
        announced = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": len(data)}]}
        (found,) = self.post(f"/{REPO}.git/info/lfs/objects/batch", json=announced)["objects"]
        for action in [found["actions"]["upload"]] if "actions" in found else []:
            self.client.put(action["href"], content=data).raise_for_status()
        return oid

    def commit(self, path, data, *, large=True):
        if large:
            oid = self.upload(data)
            line = {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid, "size": len(data)}}
        else:
            oid = hashlib.sha256(data).hexdigest()
            content = base64.b64encode(data).decode()
            line = {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}
        body = "\n".join(map(json.dumps, ({"key": "header", "value": {"summary": f"Add {path}"}}, line)))
        made = self.post(f"/api/models/{REPO}/commit/main", content=body)["commitOid"]
        self.acknowledged.append((made, path, oid))

    def post(self, path, **options):
        answer = self.client.post(path, **options)
        answer.raise_for_status()
        return answer.json()

    def work(self, prefix, stop):
        number = 0
        while not stop.is_set():
            try:
                text = f"{prefix} {number} {self.chance.random()}\n" * self.chance.choice((20, 40_000))
                self.commit(f"{prefix}/{number}.txt", text.encode(), large=number % 3 != 2)
            except httpx.TransportError:
                return  # the server is gone
            number += 1


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def killable(hub_makers, tmp_path):
    """A server that can be killed and started again, with the same data and address."""
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["adapterhub.app", "adapterhub.serve", "uvicorn"])
    port = free_port()
    settings, tokens = hub_makers.settings(tmp_path / "hub", public_url=f"http://127.0.0.1:{port}")
    processes = []

    def start():
        process = fork.Process(target=serve, args=(settings,), kwargs={"port": port}, daemon=True)
        process.start()
        processes.append(process)
        until = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{settings.public_url}/healthz", trust_env=False).raise_for_status()
                return process
            except httpx.HTTPError:
                assert process.is_alive(), "the server ended by itself"
                assert time.monotonic() < until
                time.sleep(0.01)

    yield settings, tokens["alice"], start
    for process in processes:
        process.kill()
        process.join()
        process.close()


def found_by_fsck(settings):
    async def work():
        hub = await Hub.open(settings)
        try:
            return [str(finding) async for finding in fsck.check(hub, deep=True)]
        finally:
            await hub.close()

    return asyncio.run(work())


def read_back(client, commit, path):
    return hashlib.sha256(client.get(f"/{REPO}/resolve/{commit}/{path}").raise_for_status().content).hexdigest()


@pytest.mark.slow
def test_a_killed_server_keeps_every_commit_that_it_acknowledged(killable, uploader):
    settings, token, start = killable
    chance = random.Random(7)
    writer = uploader(settings.public_url, token, 7)
    process = start()
    writer.post("/api/repos/create", json={"name": "crash", "organization": "acme"})
    checked = 0
    for turn in range(CRASHES):
        stop = threading.Event()
        worker = threading.Thread(target=writer.work, args=(f"turn-{turn}", stop))
        worker.start()
        wanted = len(writer.acknowledged) + chance.randrange(3)
        while len(writer.acknowledged) < wanted and worker.is_alive():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.2))  # and then at any moment of what it does next
        process.kill()
        worker.join(30)
        assert not worker.is_alive()
        process.join()
        assert found_by_fsck(settings) == []
        process = start()
        for commit, path, oid in writer.acknowledged[checked:]:
            assert read_back(writer.client, commit, path) == oid
        checked = len(writer.acknowledged)
    paths = {entry["path"] for entry in _tree(writer.client)}
    assert {path for _, path, _ in writer.acknowledged} <= paths
    assert checked >= CRASHES // 2


@pytest.mark.slow
def test_a_creation_that_was_killed_is_finished_by_the_next_start(killable):
    settings, token, start = killable
    chance = random.Random(3)
    process = start()
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=settings.public_url, headers=headers, trust_env=False) as client:
        for turn in range(CRASHES):
            killer = threading.Timer(chance.uniform(0.005, 0.05), process.kill)
            killer.start()
            for number in range(100):
                try:
                    client.post("/api/repos/create", json={"name": f"r-{turn}-{number}", "organization": "acme"})
                except httpx.TransportError:
                    break
            killer.join()
            process.join()
            process = start()
            assert found_by_fsck(settings) == []


def _tree(client):
    entries, address = [], f"/api/models/{REPO}/tree/main?recursive=true"
    while address:
        answer = client.get(address).raise_for_status()
        entries += answer.json()
        address = answer.links.get("next", {}).get("url")
    return [entry for entry in entries if entry["type"] == "file"]


@pytest.fixture
def uploader():
    """Makes uploaders and closes them."""
    with ExitStack() as stack:
        yield lambda url, token, seed: stack.enter_context(Uploader(url, token, random.Random(seed)))


def write_together(writers):
    """Each writer makes 25 commits to the same branch; all must be there afterwards."""
    writers[0].post("/api/repos/create", json={"name": "crash", "organization": "acme"})

    def write(writer, name):
        for number in range(25):
            for _ in range(20):
                try:
                    writer.commit(f"{name}/{number}.txt", f"{name} {number}".encode(), large=False)
                    break
                except httpx.HTTPStatusError as error:
                    if error.response.status_code != 409:  # 409: the others were faster eight times: again
                        raise

    threads = [threading.Thread(target=write, args=(writer, str(index))) for index, writer in enumerate(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    files = {entry["path"] for entry in _tree(writers[0].client)} - {".gitattributes"}
    assert files == {f"{index}/{number}.txt" for index in range(len(writers)) for number in range(25)}
    history = writers[0].client.get(f"/api/models/{REPO}/commits/main?limit=500").json()
    assert len(history) == 1 + 25 * len(writers)


@pytest.mark.parametrize("hub_server", [{}, {"db": "postgres"}], indirect=True)
def test_two_writers_lose_none_of_their_commits(hub_server, uploader):
    write_together([uploader(hub_server.url, hub_server.token("alice"), seed) for seed in range(2)])


@pytest.mark.slow
def test_four_workers_on_postgres_lose_none_of_the_commits_of_four_writers(hub_makers, tmp_path, uploader):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    settings, tokens = hub_makers.settings(tmp_path / "hub", db="postgres", workers=4, public_url=address)
    names = (field.name for field in dataclasses.fields(settings))
    given = {PREFIX + name.upper(): text_of(getattr(settings, name)) for name in names}
    command = [sys.executable, "-m", "adapterhub", "serve", "--port", str(port)]
    with subprocess.Popen(command, env={**os.environ, **given}, stdout=subprocess.DEVNULL) as server:
        try:
            until = time.monotonic() + 60
            while not _answers(address):
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
            write_together([uploader(address, tokens["alice"], seed) for seed in range(4)])
        finally:
            server.terminate()
            server.wait(30)
    assert found_by_fsck(settings) == []


def _answers(address):
    try:
        return httpx.get(f"{address}/readyz", trust_env=False, timeout=10).is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("where", ["writing", "storing"])
def test_a_full_disk_is_said_and_leaves_nothing(hub_server, uploader, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = uploader(hub_server.url, hub_server.token("alice"), 0)
    writer.post("/api/repos/create", json={"name": "crash", "organization": "acme"})
    writer.commit("before.txt", b"there was room" * 100)
    with monkeypatch.context() as patch:
        if where == "writing":
            patch.setattr(ingest, "_flush", full)
        else:
            patch.setattr("adapterhub.storage.disk.os.replace", full)
        with pytest.raises(httpx.HTTPStatusError) as caught:
            writer.commit("after.txt", b"no room" * 100)
        assert caught.value.response.status_code == 507
        assert "disk is full" in caught.value.response.json()["error"]
        commit, path, oid = writer.acknowledged[0]
        assert read_back(writer.client, commit, path) == oid  # it reads on
    scratch = Path(hub_server.settings.scratch)
    assert list(scratch.iterdir()) == []
    writer.commit("after.txt", b"no room" * 100)  # there is room again
    assert found_by_fsck(hub_server.settings) == []
