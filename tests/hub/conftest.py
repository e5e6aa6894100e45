"""Every test has caches and a choice of hub of its own, and no token."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars

import adapters
from tests.hub.fake import FakeHub

disable_progress_bars()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Hugging Face home that is empty; requests to this machine are allowed."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with adapters.hub.use(None):
        yield tmp_path / "home"


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    """A hub of a few lines, chosen for this test."""
    with FakeHub() as hub, adapters.hub.use(hub.url):
        yield hub


@dataclass(frozen=True)
class Server:
    """A hub of our own: its address, a token of alice, who owns the organisation acme, and its folder."""

    url: str
    token: str
    data: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A hub on this machine, for the tests of a module."""
    uvicorn = pytest.importorskip("uvicorn")
    from adapterhub.app import create_app
    from adapterhub.settings import Settings

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        settings = Settings(data=tmp_path_factory.mktemp("hub"), public_url=url, lfs_bytes=1 << 10, limits={})
        running = uvicorn.Server(uvicorn.Config(create_app(settings, jobs=False), log_level="error"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not running.started:
                assert thread.is_alive(), "the hub did not start"
                time.sleep(0.02)
            yield Server(url, asyncio.run(_token(settings)), settings.data)
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture
def hub(server: Server) -> Iterator[Server]:
    """The hub on this machine, chosen for this test."""
    with adapters.hub.use(server.url, server.token):
        yield server


async def _token(settings: Any) -> str:
    from adapterhub.accounts import create_org, create_token, create_user
    from adapterhub.hub import Hub

    opened = await Hub.open(settings)
    try:
        async with opened.db.write() as connection:
            alice = await create_user(connection, "alice")
            await create_org(connection, "acme", alice)
            return await create_token(connection, alice, "tests", "write")
    finally:
        await opened.close()
