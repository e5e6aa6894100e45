"""Do downloads carry what clients cache by, and exactly the bytes that were asked for?"""

from __future__ import annotations

import hashlib

import httpx
import pytest

from tests.adapterhub.conftest import HubServer
from tests.adapterhub.protocol.wire import commit, create, file, large, send, text

SMALL, LARGE = b"0123456789", text(2 << 20)
FILES = {"small.txt": SMALL, "large.txt": LARGE, "empty.txt": b"", "a b/\u00e9+%.txt": b"odd"}


@pytest.fixture(scope="module")
def repo(shared_hub_server: HubServer) -> str:
    with shared_hub_server.client() as client:
        name = create(client, "alice/files")
        send(client, name, LARGE)
        lines = [large(p, d) if p == "large.txt" else file(p, d) for p, d in FILES.items()]
        commit(client, name, *lines)
    return name


def test_headers(shared_hub_server: HubServer, repo: str) -> None:
    with shared_hub_server.client(None) as client:
        commit_oid = client.get(f"/api/models/{repo}").json()["sha"]
        small, big = (client.head(f"/{repo}/resolve/main/{name}").headers for name in ("small.txt", "large.txt"))
        missing = client.head(f"/{repo}/resolve/main/none.txt")
    digest = hashlib.sha256(LARGE).hexdigest()
    assert small["etag"] == f'"{hashlib.sha1(b"blob 10" + bytes(1) + SMALL).hexdigest()}"'
    assert big["etag"] == big["x-linked-etag"] == f'"{digest}"'
    assert big["x-linked-size"] == big["content-length"] == str(len(LARGE))
    assert {h["x-repo-commit"] for h in (small, big, missing.headers)} == {commit_oid}
    assert missing.status_code == 404 and missing.headers["x-error-code"] == "EntryNotFound"
    for headers in (small, big):
        # What users upload never runs as a page of this site, and is never guessed at.
        assert headers["content-type"] == "application/octet-stream"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-disposition"].startswith("attachment")
        assert "sandbox" in headers["content-security-policy"]
        assert "content-encoding" not in headers and "x-xet-hash" not in headers


@pytest.mark.parametrize("path", FILES)
def test_whole_files(shared_hub_server: HubServer, repo: str, path: str) -> None:
    with shared_hub_server.client(None) as client:
        address = httpx.URL(f"/{repo}/resolve/main/").join(path.replace("%", "%25").replace(" ", "%20"))
        answer = client.get(address)
        assert answer.status_code == 200 and answer.content == FILES[path]
        again = client.get(address, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content


RANGES = [
    ("bytes=0-0", slice(0, 1)),
    ("bytes=2-5", slice(2, 6)),
    ("bytes=4-", slice(4, None)),
    ("bytes=-3", slice(-3, None)),
    ("bytes=-99999999", slice(0, None)),
    ("bytes=5-99999999", slice(5, None)),
]


@pytest.mark.parametrize("path", ["small.txt", "large.txt"])
@pytest.mark.parametrize(("asked", "part"), RANGES)
def test_ranges(shared_hub_server: HubServer, repo: str, path: str, asked: str, part: slice) -> None:
    data = FILES[path]
    with shared_hub_server.client(None) as client:
        answer = client.get(f"/{repo}/resolve/main/{path}", headers={"Range": asked})
    start, end, _ = part.indices(len(data))
    assert answer.status_code == 206 and answer.content == data[part]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(data)}"


def test_ranges_behind_the_end(shared_hub_server: HubServer, repo: str) -> None:
    with shared_hub_server.client(None) as client:
        for path, asked in (("small.txt", "bytes=10-"), ("small.txt", "bytes=-0"), ("empty.txt", "bytes=0-")):
            answer = client.get(f"/{repo}/resolve/main/{path}", headers={"Range": asked})
            assert answer.status_code == 416
            assert answer.headers["content-range"] == f"bytes */{len(FILES[path])}"


@pytest.mark.parametrize("asked", ["bytes=0-1,3-4", "items=0-5", "bytes=5-2", "bytes=-", "bytes=a-b", "bytes=\u0663-"])
def test_what_is_no_range_gives_the_whole(shared_hub_server: HubServer, repo: str, asked: str) -> None:
    with shared_hub_server.client(None) as client:
        answer = client.get(f"/{repo}/resolve/main/small.txt", headers={"Range": asked.encode()})
    assert answer.status_code == 200 and answer.content == SMALL


def test_a_range_of_another_version_gives_the_whole(shared_hub_server: HubServer, repo: str) -> None:
    with shared_hub_server.client(None) as client:
        address = f"/{repo}/resolve/main/small.txt"
        etag = client.head(address).headers["etag"]
        same = client.get(address, headers={"Range": "bytes=1-2", "If-Range": etag})
        other = client.get(address, headers={"Range": "bytes=1-2", "If-Range": '"old"'})
    assert (same.status_code, same.content, other.status_code, other.content) == (206, b"12", 200, SMALL)


@pytest.mark.parametrize("hub_server", [{"redirect_blobs": True}], indirect=True)
def test_redirects_carry_the_headers_and_need_no_token(hub_server: HubServer) -> None:
    with hub_server.client() as client:
        repo = create(client, "alice/hidden", private=True)
        send(client, repo, LARGE)
        commit(client, repo, large("large.txt", LARGE))
        answer = client.get(f"/{repo}/resolve/main/large.txt")
    assert answer.status_code == 302
    assert answer.headers["x-linked-size"] == str(len(LARGE)) and answer.headers["x-repo-commit"]
    with hub_server.client(None) as stranger:
        assert stranger.get(answer.headers["location"]).content == LARGE
