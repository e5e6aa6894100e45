"""A hub with another behind it: repositories that it does not know come from there, proven, and are kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from adapterhub.ops.limits import kind_of
from adapterhub.settings import Settings
from adapterhub.upstream import _remove_oldest
from tests.adapterhub.conftest import HubServer
from tests.adapterhub.protocol import wire

WEIGHTS = wire.text(3 << 20)
CONFIG = b'{"model_type": "bert"}'


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def behind(start_hub: Callable[..., HubServer]) -> HubServer:
    """A hub with a model in small and large files, and one that is private."""
    server = start_hub()
    with server.client() as alice:
        alice.post("/api/v1/orgs", json={"name": "makers"}).raise_for_status()
        for repo, hidden in (("makers/bert", False), ("makers/secret", True)):
            wire.create(alice, repo, private=hidden)
            wire.commit(alice, repo, wire.file("config.json", CONFIG))
        wire.send(alice, "makers/bert", WEIGHTS)
        wire.commit(alice, "makers/bert", wire.large("model.bin.txt", WEIGHTS))
    return server


@pytest.fixture
def front(start_hub: Callable[..., HubServer], behind: HubServer) -> HubServer:
    return start_hub(upstream=behind.url)


# ---- what comes through ---------------------------------------------------------------------------------------------


def test_clients_see_one_hub(front: HubServer, tmp_path: Any) -> None:
    api = HfApi(front.url, token=False)
    info = api.model_info("makers/bert", files_metadata=True)
    assert {file.rfilename: file.size for file in info.siblings}["model.bin.txt"] == len(WEIGHTS)
    folder = api.snapshot_download("makers/bert", cache_dir=tmp_path)
    with open(f"{folder}/model.bin.txt", "rb") as file:
        assert file.read() == WEIGHTS
    assert [item.path for item in api.list_repo_tree("makers/bert")] == [
        item.path for item in HfApi(front.settings.upstream, token=False).list_repo_tree("makers/bert")
    ]
    assert api.get_paths_info("makers/bert", ["config.json", "nothing"])[0].size == len(CONFIG)
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("makers/bert", "nothing.json", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("makers/bert", revision="no-branch")
    for unknown in ("makers/nothing", "nobody/nothing", "bert-base-uncased", "makers/secret"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(unknown)


def test_own_repositories_come_first_and_hide_others(front: HubServer, behind: HubServer) -> None:
    with front.client() as here, behind.client() as there:
        wire.create(here, "alice/same")
        wire.commit(here, "alice/same", wire.file("README.md", b"here"))
        for repo in ("alice/same", "alice/other"):
            wire.create(there, repo)
            wire.commit(there, repo, wire.file("README.md", b"there"))
        assert here.get("/alice/same/resolve/main/README.md").content == b"here"
        # Whose namespace is here is not asked for elsewhere, so no private name goes out.
        assert here.get("/alice/other/resolve/main/README.md").status_code == 404


def test_what_was_served_is_no_account_later(front: HubServer) -> None:
    with front.client() as alice:
        alice.get("/makers/bert/resolve/main/config.json").raise_for_status()
        for name in ("makers", "Makers", "mаkers"):
            answer = alice.post("/api/v1/orgs", json={"name": name})
            assert answer.status_code in (400, 409), name
        assert "makers/bert" in alice.post("/api/v1/orgs", json={"name": "Makers"}).json()["error"]
        alice.post("/api/v1/orgs", json={"name": "others"}).raise_for_status()


def test_ranges_and_headers_are_those_of_a_file_here(front: HubServer, behind: HubServer) -> None:
    path = "/makers/bert/resolve/main/model.bin.txt"
    with front.client(None) as client, behind.client(None) as direct:
        for _ in range(2):  # while it is fetched, and when it is here
            part = client.get(path, headers={"Range": "bytes=1000000-1000009"})
            assert (part.status_code, part.content) == (206, WEIGHTS[1000000:1000010])
        for method in ("HEAD", "GET"):
            here, there = client.request(method, path), direct.request(method, path)
            for name in ("etag", "x-repo-commit", "x-linked-etag", "x-linked-size", "content-length"):
                assert here.headers[name] == there.headers[name], name
        assert here.headers["x-upstream"] == front.settings.upstream
        assert client.get(path, headers={"If-None-Match": here.headers["etag"]}).status_code == 304


def test_what_is_kept_is_served_without_the_other(front: HubServer, behind: HubServer, monkeypatch: Any) -> None:
    monkeypatch.setattr("adapterhub.upstream.FRESH", 0.0)
    files = "/makers/bert/resolve/main/"
    paths = (files + "config.json", files + "model.bin.txt", "/api/models/makers/bert")
    with front.client(None) as client:
        before = [client.get(path) for path in paths]
        missing = client.get(files + "none.json")
        behind.app.router.routes.clear()  # it answers 404 to everything now
        monkeypatch.setattr(front.hub.upstream, "url", "http://127.0.0.1:9")  # nor does anybody listen
        after = [client.get(path) for path in paths]
        assert client.get(files + "none.json").headers["x-error-code"] == "EntryNotFound"
        assert client.get(files + "unknown.json").status_code == 502
    assert missing.headers["x-error-code"] == "EntryNotFound"
    assert [answer.content for answer in before] == [answer.content for answer in after]


def test_pages_of_lists_lead_back_here(front: HubServer, behind: HubServer) -> None:
    with behind.client() as alice:
        wire.commit(alice, "makers/bert", *(wire.file(f"notes/{i}.txt", b"%d" % i) for i in range(1100)))
    with front.client(None) as client:
        first = client.get("/api/models/makers/bert/tree/main?recursive=true")
        following = first.links["next"]["url"]
        assert following.startswith(front.url)
        assert len(first.json()) + len(client.get(following).json()) == 1104


def test_settings(tmp_path: Any) -> None:
    for given, reason in (("ftp://x", "must begin"), ("http://127.0.0.1:8090/", "itself")):
        with pytest.raises(ValueError, match=reason):
            Settings(data=tmp_path, upstream=given)
    assert kind_of("GET", "/bert-base-uncased/resolve/main/config.json") == "resolve"


def test_the_oldest_go_first(tmp_path: Any) -> None:
    import os

    for number in range(4):
        (tmp_path / str(number)).write_bytes(b"x" * 10)
        os.utime(tmp_path / str(number), (number, number))
    _remove_oldest(tmp_path, 25, lambda state: state.st_size, but=tmp_path / "0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "3"]


# ---- a hub that lies ------------------------------------------------------------------------------------------------


class Liar:
    """A server that answers as it is told: path -> status, headers, body."""

    def __init__(self) -> None:
        self.says: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        liar = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                liar.asked.append((self.command, self.path, dict(self.headers)))
                status, headers, body = liar.says.get(self.path, (404, {"X-Error-Code": "EntryNotFound"}, b""))
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def file(self, path: str, body: bytes, **headers: str) -> None:
        """Announces a file, by default as it is."""
        oid = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self.says[path] = (200, {"ETag": f'"{oid}"', "X-Repo-Commit": "a" * 40, **given}, body)


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_bytes_that_are_not_what_was_announced_never_arrive_whole(
    liar: Liar, start_hub: Callable[..., HubServer]
) -> None:
    front = start_hub(upstream=liar.url)
    good, other = b"weights " * 100, b"Weights " * 100
    sha256 = hashlib.sha256(good).hexdigest()
    liar.file("/a/b/resolve/main/good", good)
    liar.file("/a/b/resolve/main/git", other, ETag=f'"{hashlib.sha1(b"blob 800" + bytes(801)).hexdigest()}"')
    liar.file("/a/b/resolve/main/lfs", other, X_Linked_Etag=f'"{sha256}"', X_Linked_Size="800")
    liar.file("/a/b/resolve/main/short", good, X_Linked_Etag=f'"{sha256}"', X_Linked_Size="900")
    liar.file("/a/b/resolve/main/long", good + b"more", X_Linked_Etag=f'"{sha256}"', X_Linked_Size="800")
    with front.client(None) as client:
        assert client.get("/a/b/resolve/main/good").content == good
        for name in ("git", "lfs", "short", "long"):
            with pytest.raises(httpx.HTTPError):  # it breaks off, or is refused where nothing was sent yet
                client.get(f"/a/b/resolve/main/{name}").raise_for_status()
    kept = list((front.settings.data / "upstream" / "files").iterdir())
    assert len(kept) == 1 and kept[0].read_bytes() == good
    assert not list(front.settings.scratch.glob("upstream-*"))


@pytest.mark.parametrize(
    ("says", "status", "text"),
    [
        ((200, {"ETag": '"x"', "X-Repo-Commit": "a" * 40}, b"x"), 502, "hash"),
        ((200, {"ETag": f'"{"a" * 40}"'}, b"x"), 502, "commit"),
        (
            (200, {"ETag": f'"{"a" * 40}"', "X-Repo-Commit": "a" * 40, "X-Linked-Size": str(1 << 50)}, b""),
            413,
            "at most",
        ),
        ((302, {"Location": "/a/b/resolve/main/x"}, b""), 502, "redirects"),
        ((403, {"X-Error-Code": "GatedRepo"}, b""), 403, "token of your own"),
        ((401, {"X-Error-Code": "RepoNotFound"}, b""), 404, "not found"),
        ((500, {}, b""), 502, "status 500"),
    ],
    ids=["no hash", "no commit", "too large", "in circles", "gated", "unknown", "broken"],
)
def test_answers_that_cannot_be_used(
    liar: Liar, start_hub: Callable[..., HubServer], says: Any, status: int, text: str
) -> None:
    liar.says["/a/b/resolve/main/x"] = says
    with start_hub(upstream=liar.url).client(None) as client:
        answer = client.get("/a/b/resolve/main/x")
    assert answer.status_code == status and text in answer.json()["error"]


def test_no_token_and_no_odd_name_goes_out(liar: Liar, start_hub: Callable[..., HubServer]) -> None:
    front = start_hub(upstream=liar.url)
    liar.file("/a/b/resolve/feature%2Fx/dir/a%20b.json", b"{}")
    liar.says["/api/models/a/b"] = (200, {}, json.dumps({"id": "a/b"}).encode())
    liar.says["/api/models/a/c"] = (200, {}, b"<html>")
    with front.client() as alice:
        assert alice.get("/a/b/resolve/feature%2Fx/dir/a%20b.json").content == b"{}"
        assert alice.get("/api/models/a/b").json() == {"id": "a/b"}
        assert alice.get("/api/models/a/c").status_code == 502
        before = len(liar.asked)
        for odd in ("/..%2Fx/b/resolve/main/x", "/a/b%3Fx=1/resolve/main/x", "/api/models/-a/b"):
            assert alice.get(odd).status_code == 404, odd
    assert len(liar.asked) == before
    assert not any(name.lower() in ("authorization", "cookie") for _, _, headers in liar.asked for name in headers)


def test_one_download_serves_all_who_ask(behind: HubServer, front: HubServer) -> None:
    answers: list[bytes] = []

    def fetch() -> None:
        with front.client(None) as client:
            answers.append(client.get("/makers/bert/resolve/main/model.bin.txt").content)

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [WEIGHTS] * 6
    assert not list(front.settings.scratch.glob("upstream-*"))


def test_without_another_hub_nothing_is_passed_on(hub_server: HubServer) -> None:
    with pytest.raises(RepositoryNotFoundError):
        HfApi(hub_server.url, token=False).model_info("bert-base-uncased")
    with hub_server.client(None) as client:
        assert client.get("/bert-base-uncased/resolve/main/config.json").headers["x-error-code"] == "RepoNotFound"
