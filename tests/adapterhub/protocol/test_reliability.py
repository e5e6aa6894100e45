"""Do connections that break, servers that are busy and networks that are gone do no harm?"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from adapterhub.settings import MiB
from tests.adapterhub.conftest import HubServer
from tests.adapterhub.protocol.conftest import HERE, Program, environment
from tests.adapterhub.protocol.cutting import cutting
from tests.adapterhub.protocol.wire import batch, commit, create, file, large, post_commit, send, text, upload_of

DATA = text(16 * MiB)
DIGEST = hashlib.sha256(DATA).hexdigest()
REPO = "alice/large"


@pytest.fixture(scope="module")
def server(shared_hub_server: HubServer) -> HubServer:
    with shared_hub_server.client() as client:
        create(client, REPO)
        send(client, REPO, DATA)
        commit(client, REPO, large("large.txt", DATA), file("small.txt", b"small"))
    return shared_hub_server


def test_a_download_that_is_cut_three_times(server: HubServer, program: Program) -> None:
    with cutting(server.url, after=4 * MiB, cuts=3) as proxy:
        told = program("fetch.py", server, REPO, "large.txt", HF_ENDPOINT=proxy.url)
        assert proxy.cuts == 0
    assert told == {"files": {"large.txt": DIGEST}, "error": None}


def test_part_of_a_file_is_never_taken_for_the_file(server: HubServer, program: Program, tmp_path: Path) -> None:
    """Not even where the client is killed in the midst; the next one gets all of it."""
    with cutting(server.url, after=4 * MiB, cuts=1000) as proxy:
        env = environment(server, tmp_path) | {"HF_ENDPOINT": proxy.url}
        command = [sys.executable, str(HERE / "fetch.py"), REPO, "large.txt"]
        with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            assert proxy.reached.wait(60)
            process.kill()
    cache = tmp_path / "home" / "hub"
    assert not [path for path in cache.rglob("large.txt") if path.stat().st_size]
    assert not [path for path in cache.glob("*/blobs/*") if not path.name.endswith(".incomplete")]
    assert program("fetch.py", server, REPO, "large.txt")["files"] == {"large.txt": DIGEST}


def test_without_a_network_the_cache_serves(server: HubServer, program: Program) -> None:
    online = program("fetch.py", server, REPO)
    assert online["files"].keys() == {".gitattributes", "large.txt", "small.txt"} and online["error"] is None
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert program("fetch.py", server, REPO, HF_HUB_OFFLINE="1", **nowhere) == online
    assert program("fetch.py", server, REPO, "large.txt", HF_HUB_OFFLINE="1", **nowhere) == online
    assert program("fetch.py", server, REPO, "large.txt", **nowhere) == online
    missing = program("fetch.py", server, "alice/never-seen", "a.txt", HF_HUB_OFFLINE="1", **nowhere)
    assert missing["error"].startswith("LocalEntryNotFoundError")


def test_an_upload_that_is_cut_leaves_nothing(server: HubServer) -> None:
    data = text(8 * MiB, "cut")

    def broken() -> object:
        yield data[: 4 * MiB]
        raise ConnectionError

    with server.client() as client:
        address = upload_of(client, REPO, data, parts=False)["href"]
        with pytest.raises(ConnectionError):
            httpx.put(address, content=broken(), headers={"Content-Length": str(len(data))}, trust_env=False)
        assert "actions" in batch(client, REPO, data).json()["objects"][0]
        with pytest.raises(ConnectionError):
            client.post(f"/api/models/{REPO}/commit/main", content=broken())
        # The hub goes on: and what it had begun is gone.
        commit(client, REPO, file("after.txt", b"after"))
    assert not [path for path in server.settings.scratch.rglob("*") if path.is_file()]


@pytest.mark.parametrize("hub_server", [{"limits": {"api": (15, 1)}}], indirect=True)
def test_a_client_that_asks_too_often_waits(hub_server: HubServer, program: Program) -> None:
    told = program("patience.py", hub_server, 20)
    assert told["answers"] == 20


@pytest.mark.parametrize("hub_server", [{"limits": {"upload": (3, 3600)}}], indirect=True)
def test_too_many_uploads(hub_server: HubServer) -> None:
    with hub_server.client() as client:
        repo = create(client, "alice/often")
        address = upload_of(client, repo, b"x" * MiB)["href"]
        answers = [httpx.put(address, content=b"y", trust_env=False) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [422, 422, 422, 429]
        assert int(answers[-1].headers["retry-after"]) <= 3600 and "r=0" in answers[-1].headers["ratelimit"]
        assert post_commit(client, repo, file("a.txt", b"a")).status_code == 200
