"""Does the hub's own API keep to what `/openapi.json` says of it, whatever it is sent?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.adapterhub.acceptance import seed
from tests.adapterhub.conftest import PASSWORD, HubServer, Makers

FULL = bool(os.environ.get("ADAPTERHUB_FULL"))


@pytest.fixture
def server(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub with something to be found in each place."""
    with hub_makers.server(tmp_path_factory.mktemp("hub")) as server:
        with server.client() as alice:
            seed.push(alice, "acme/reviews")
            seed.push(alice, "alice/reviews")
            seed.push(alice, "alice/secret", private=True)
        yield server


def schemathesis(server: HubServer, *arguments: str, token: str | None, timeout: int) -> str:
    """Runs schemathesis against a hub; returns what it prints."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--no-color"]
    # Some rules are beyond what a schema can say: a cursor must come from a page, of some parameters one is needed.
    command += ["--exclude-checks=positive_data_acceptance", "--warnings=off", "--seed=1"]
    headers = ["-H", f"Authorization: Bearer {server.token(token)}", "-H", f"X-Password: {PASSWORD}"] if token else []
    given = {**os.environ, "PYTHONWARNINGS": "ignore", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [*command, *headers, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=given,
        cwd=server.settings.data,
    )
    shown = f"{done.stdout[-12_000:]}\n{done.stderr[-2000:]}"
    assert done.returncode == 0, shown
    tested = re.search(r"(\d+) generated", done.stdout)
    assert tested and int(tested[1]) > 100, shown
    return done.stdout


@pytest.mark.slow
def test_every_operation(server: HubServer) -> None:
    schemathesis(server, "--phases=examples,coverage", token="alice", timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="takes minutes: ADAPTERHUB_FULL=1")
@pytest.mark.parametrize("token", [None, "alice", "bob", "reader"])
def test_every_operation_many_times(server: HubServer, token: str | None) -> None:
    schemathesis(server, "--max-examples=150", token=token, timeout=1200)
