"""Does every way in which clients upload bring the same bytes, by default and with its switches?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.protocol import lfs, ndjson
from adapterhub.settings import MiB
from adapterhub.xet import ingest as xet
from tests.adapterhub.acceptance.process import running
from tests.adapterhub.conftest import HubServer, Makers
from tests.adapterhub.protocol.conftest import Program
from tests.adapterhub.protocol.wire import create

# What the server calls for each way of uploading.
WAYS = {"xet": (xet, "store_xorb"), "whole": (lfs, "ingest"), "parts": (lfs, "_receive"), "commit": (ndjson, "_file")}
PLAIN = {"HF_HUB_DISABLE_XET": "1"}
# settings of the hub, environment of the client, the way that large files must take
CASES: dict[str, tuple[dict[str, Any], dict[str, str], set[str]]] = {
    "default": ({}, {}, {"xet", "commit"}),
    "without-xet": ({"multipart_bytes": 512 * MiB}, PLAIN, {"whole", "commit"}),
    "in-parts": ({"multipart_bytes": 5 * MiB}, PLAIN, {"parts", "whole", "commit"}),
    "inline": ({"upload_mode": "inline"}, {}, {"commit"}),
    "inline-without-xet": ({"upload_mode": "inline"}, PLAIN, {"commit"}),
    "lfs-only": ({"upload_mode": "lfs", "multipart_bytes": 512 * MiB}, PLAIN, {"whole", "commit"}),
}
SLOW = ("inline-without-xet", "lfs-only")  # they differ little from the others
OLD = "0.25.2"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The ways that uploads take."""
    seen: set[str] = set()

    def spy(way: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            seen.add(way)
            return function(*arguments, **options)

        return called

    for way, (module, name) in WAYS.items():
        monkeypatch.setattr(module, name, spy(way, getattr(module, name)))
    return seen


@pytest.mark.parametrize(
    ("hub_server", "env", "ways"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, case in CASES.items()],
    indirect=["hub_server"],
)
def test_ways(hub_server: HubServer, program: Program, taken: set[str], env: dict[str, str], ways: set[str]) -> None:
    check(program("ways.py", hub_server, 1 << 10, 17_000_000, **env))
    assert taken == ways
    assert not list(hub_server.settings.scratch.iterdir())


def test_an_old_client(hub_server: HubServer, program: Program, taken: set[str]) -> None:
    check(program("ways.py", hub_server, 1 << 10, 17_000_000, version=OLD))
    assert taken == {"parts", "whole", "commit"}


@pytest.mark.parametrize("hub_server", [{"upload_mode": "lfs"}], indirect=True)
def test_a_hub_without_xet_tells_what_to_do(hub_server: HubServer) -> None:
    files = [{"path": "a.safetensors", "size": 17_000_000}]
    with hub_server.client() as client:
        repo = create(client, "alice/no-xet")
        announced = client.post(f"/api/models/{repo}/preupload/main", json={"files": files})
        refused = client.get(f"/api/models/{repo}/xet-write-token/main")
    assert "HF_HUB_DISABLE_XET=1" in announced.headers["x-hf-warning"]
    assert refused.status_code == 422 and "HF_HUB_DISABLE_XET=1" in refused.json()["error"]


@pytest.mark.parametrize(
    "hub_server", [{"db": "postgres", "blobs": "s3"}, {"blobs": "s3", "redirect_blobs": True}], indirect=True
)
@pytest.mark.parametrize("env", [{}, PLAIN], ids=["default", "without-xet"])
@pytest.mark.slow
def test_ways_to_s3(hub_server: HubServer, program: Program, env: dict[str, str]) -> None:
    check(program("ways.py", hub_server, 1 << 10, 17_000_000, **env))


@pytest.mark.slow
@pytest.mark.parametrize(("env", "limit"), [({}, 300), (PLAIN, 150)], ids=["default", "without-xet"])
def test_a_file_larger_than_the_memory_it_takes(
    hub_makers: Makers, tmp_path: Path, program: Program, env: dict[str, str], limit: int
) -> None:
    """The server's memory does not grow with the file."""
    with running(hub_makers, tmp_path) as hub:
        check(program("ways.py", hub, 512 << 20, timeout=590, **env))
        assert hub.peak() < limit
    shutil.rmtree(tmp_path)  # more than a gigabyte


def check(told: dict[str, Any]) -> None:
    """What came back is what was sent, and a second upload made no commit."""
    assert told.get("error") is None
    assert told["sent"] == told["received"]
    assert told["commits"] == 2
