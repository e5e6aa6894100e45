"""What surrounds the routes: health, figures, counted downloads, and clients that hang."""

import socket
import time

import pytest

from adapterhub.ops import slow_clients
from tests.adapterhub.ops import making


def test_health_and_readiness(hub_server):
    with hub_server.client(None) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"ready": True, "database": "ok", "blobs": "ok"}


@pytest.mark.parametrize("hub_server", [{"blobs": "s3"}], indirect=True)
def test_without_its_bucket_a_hub_is_not_ready_but_lives_and_shows_what_it_knows(hub_server, monkeypatch):
    from adapterhub.storage import s3

    hub_server.call(making.new_repo)
    bucket = hub_server.hub.blobs._bucket
    monkeypatch.setattr(hub_server.hub.blobs, "_bucket", s3.S3Store("s3://gone")._bucket)
    with hub_server.client() as client:
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["database"] == "ok"
        assert "does not answer" in answer.json()["blobs"]
        assert client.get("/healthz").status_code == 200
        assert client.get("/api/models/acme/one").status_code == 200
        monkeypatch.setattr(hub_server.hub.blobs, "_bucket", bucket)
        assert client.get("/readyz").status_code == 200
        assert client.get("/acme/one/resolve/main/.gitattributes").status_code == 200


def figures(client):
    text = client.get("/metrics").text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_figures_count_requests_and_what_the_hub_holds(hub_server):
    series = 'adapterhub_requests_total{kind="resolve",method="GET",status="4xx"}'
    with hub_server.client() as client:
        before = figures(client)
        client.get("/nobody/nothing/resolve/main/x")
        hub_server.call(making.new_repo)
        after = figures(client)
    assert after[series] == before.get(series, 0) + 1
    assert after["adapterhub_repositories"] == before["adapterhub_repositories"] + 1
    assert after["adapterhub_blob_bytes"] > before["adapterhub_blob_bytes"]
    assert after["adapterhub_users"] == 2


def test_a_download_is_counted_when_its_config_is_fetched(hub_server):
    async def fill(hub):
        await making.put(hub, await making.new_repo(hub), "adapter_config.json", b"{}", lfs=False)

    hub_server.call(fill)
    with hub_server.client(None) as client:
        for _ in range(3):
            assert client.get("/acme/one/resolve/main/adapter_config.json").status_code == 200
        client.head("/acme/one/resolve/main/adapter_config.json")
        client.get("/acme/one/resolve/main/.gitattributes")
        hub_server.call(hub_server.app.state.downloads.flush)
        assert client.get("/api/models/acme/one?expand=downloadsAllTime").json()["downloadsAllTime"] == 3


def closed_within(connection, seconds):
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
        b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nname=",
    ],
)
def test_a_client_that_hangs_is_let_go(hub_server, monkeypatch, sent):
    monkeypatch.setattr(slow_clients, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(slow_clients, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(slow_clients, "STALL_SECONDS", 0.2)
    address = (hub_server.url.split("/")[2].split(":")[0], int(hub_server.url.rsplit(":", 1)[1]))
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        assert closed_within(connection, 3)


def test_a_client_that_gets_on_slowly_is_served(hub_server, monkeypatch):
    monkeypatch.setattr(slow_clients, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(slow_clients, "STALL_SECONDS", 0.5)
    address = ("127.0.0.1", int(hub_server.url.rsplit(":", 1)[1]))
    body = b'{"content": "# x"}'
    head = f"POST /api/validate-yaml HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(address) as connection:
        connection.sendall(head.encode())
        for start in range(0, len(body), 3):
            time.sleep(0.15)
            connection.sendall(body[start : start + 3])
        connection.settimeout(5)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_is_let_go(hub_server, monkeypatch):
    async def fill(hub):
        await making.put(hub, await making.new_repo(hub), "large.txt", b"some text\n" * 2_000_000)

    hub_server.call(fill)
    monkeypatch.setattr(slow_clients, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(slow_clients, "STALL_SECONDS", 0.3)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(hub_server.url.rsplit(":", 1)[1])))
        connection.sendall(b"GET /acme/one/resolve/main/large.txt HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.2)
        received = 0
        connection.settimeout(3)
        try:
            while data := connection.recv(1 << 16):
                received += len(data)
        except ConnectionError:
            pass
    assert received < 20_000_000
