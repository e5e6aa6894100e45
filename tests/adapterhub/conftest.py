"""Hubs for tests: real servers on free ports, and opened hubs without one.

A hub's database is a copy of one that was migrated, and got its users, once per session. Which database and store it
uses is said by `ADAPTERHUB_TEST_DB=postgres` and `ADAPTERHUB_TEST_BLOBS=s3`, or per test: `hub_server` and `hub` take
settings as indirect parameters, among them `db="postgres"` and `blobs="s3"`.

    @pytest.mark.parametrize("hub_server", [{"upload_mode": "inline"}, {"db": "postgres"}], indirect=True)
    def test_something(hub_server): ...
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub import accounts
from adapterhub.http import SESSION_COOKIE
from adapterhub.hub import Hub
from adapterhub.settings import MiB, Settings
from scripts import postgres

PASSWORD = "correct horse battery"
BUCKET = "hub-test"
# name: (account, role)
TOKENS = {"alice": ("alice", "write"), "bob": ("bob", "write"), "reader": ("alice", "read")}


@dataclass(frozen=True)
class HubServer:
    """A running hub: users `alice` (who runs it and the organisation `acme`) and `bob`, both with `PASSWORD`.

    Attributes:
        url: its address.
        settings: how it is set up; the limits on requests are off.
        tokens: their tokens: `alice` and `bob` may write, `reader` is alice's and may only read.
    """

    url: str
    settings: Settings
    tokens: dict[str, str]
    loop: asyncio.AbstractEventLoop
    app: Any

    @property
    def hub(self) -> Hub:
        """The hub inside; reach for it through `call`."""
        return self.app.state.hub

    def token(self, name: str = "alice") -> str:
        """A token: `alice`, `bob` or `reader`."""
        return self.tokens[name]

    def client(self, name: str | None = "alice") -> httpx.Client:
        """An HTTP client with a token, or without one for None; close it, or use it in a `with`."""
        headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def browser(self, name: str) -> tuple[httpx.Client, str]:
        """A browser of somebody who is logged in, and what its forms must bring as `csrf`."""

        async def work(hub: Hub) -> tuple[str, str]:
            async with hub.db.write() as conn:
                account = await accounts.find_account(conn, name)
                cookie = await accounts.open_session(conn, account["id"])
            return cookie, (await accounts.session_principal(hub.db, cookie)).csrf or ""

        cookie, csrf = self.call(work)
        headers = {"Accept": "text/html", "Cookie": f"{SESSION_COOKIE}={cookie}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False), csrf

    def call(self, work: Callable[[Hub], Coroutine[Any, Any, Any]]) -> Any:
        """Runs `work(hub)` inside the server and returns what it returns."""
        return asyncio.run_coroutine_threadsafe(work(self.hub), self.loop).result(60)


@dataclass(frozen=True)
class OpenHub:
    """A template for hubs: a data folder, and a database to copy."""

    data: Path
    tokens: dict[str, str]
    database: str | None = None  # of PostgreSQL


async def fill(settings: Settings) -> dict[str, str]:
    """Migrates a new hub and makes its users; returns their tokens."""
    from adapterhub.ops.setup import prepare

    hub = await Hub.open(settings)
    try:
        await prepare(hub)
        async with hub.db.write() as conn:
            ids = {"alice": await accounts.create_user(conn, "alice", PASSWORD, fullname="Alice", is_admin=True)}
            ids["bob"] = await accounts.create_user(conn, "bob", PASSWORD, fullname="Bob")
            await accounts.create_org(conn, "acme", ids["alice"], fullname="Acme")
            return {
                name: await accounts.create_token(conn, ids[account], name, role)
                for name, (account, role) in TOKENS.items()
            }
    finally:
        await hub.close()


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[postgres.Cluster]:
    """A PostgreSQL of this worker's own."""
    if postgres.find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres.cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgres_url(postgres_cluster: postgres.Cluster) -> str:
    """An empty database that all tests of a worker share; `postgres_cluster.create()` makes one for a test alone."""
    return postgres_cluster.url(postgres_cluster.create())


@pytest.fixture(scope="session")
def s3() -> Iterator[Callable[[], str]]:
    """An S3 of this worker's own; each call gives the address of a store with nothing in it."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    given = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        httpx.put(f"{endpoint}/{BUCKET}", trust_env=False).raise_for_status()
        number = iter(range(10_000))
        yield lambda: f"s3://{BUCKET}/{next(number)}"
    server.stop()


class Makers:
    """Makes hubs that are up to date and have their users."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self.request = request
        self.folder = folder
        self._templates: dict[str, OpenHub] = {}

    def template(self, kind: str) -> OpenHub:
        """The template of a kind of database: `sqlite` or `postgres`."""
        if kind not in self._templates:
            data, database, db = self.folder / kind, None, ""
            if kind == "postgres":
                cluster: postgres.Cluster = self.request.getfixturevalue("postgres_cluster")
                database = cluster.create()
                db = cluster.url(database)
            tokens = asyncio.run(fill(Settings(data=data, db=db)))
            self._templates[kind] = OpenHub(data, tokens, database)
        return self._templates[kind]

    def settings(self, data: Path, **given: Any) -> tuple[Settings, dict[str, str]]:
        """Settings of a new hub in `data`, and its tokens."""
        wanted = {
            "db": os.environ.get("ADAPTERHUB_TEST_DB", "sqlite"),
            "blobs": os.environ.get("ADAPTERHUB_TEST_BLOBS", ""),
            "limits": {},
            "multipart_bytes": 8 * MiB,
            **given,
        }
        kind = "postgres" if wanted["db"] == "postgres" else "sqlite"
        template = self.template(kind)
        shutil.copytree(template.data, data, dirs_exist_ok=True)
        if template.database is not None:
            cluster: postgres.Cluster = self.request.getfixturevalue("postgres_cluster")
            wanted["db"] = cluster.url(cluster.create(template.database))
        elif wanted["db"] == "sqlite":
            wanted["db"] = ""
        if wanted["blobs"] == "s3":
            wanted["blobs"] = self.request.getfixturevalue("s3")()
        return Settings(data=data, **wanted), template.tokens

    @contextmanager
    def server(self, data: Path, **given: Any) -> Iterator[HubServer]:
        """A running server with a new hub in `data`."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            given.setdefault("public_url", f"http://127.0.0.1:{listening.getsockname()[1]}")
            settings, tokens = self.settings(data, **given)
            with serving(settings, tokens, listening) as server:
                yield server


@contextmanager
def serving(settings: Settings, tokens: dict[str, str], listening: socket.socket) -> Iterator[HubServer]:
    """Runs a server in a thread while the block runs."""
    import uvicorn

    from adapterhub.app import create_app
    from adapterhub.serve import server_options

    wrapped = create_app(settings, jobs=False)
    options = {**server_options(settings), "log_level": "warning", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(wrapped, **options))
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listening])

    def work() -> None:
        loop = server.config.get_loop_factory()()
        try:
            loop.run_until_complete(run())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    thread = threading.Thread(target=work, name="hub-server", daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise RuntimeError("the hub did not start; its log tells why")
            time.sleep(0.005)
        app = wrapped
        while not hasattr(app, "state"):
            app = app.app
        yield HubServer(settings.public_url, settings, tokens, loops[0], app)
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="session")
def hub_makers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Makers:
    """Makes hubs; the templates are made once per worker."""
    return Makers(request, tmp_path_factory.mktemp("hub-template"))


@pytest.fixture
def hub_server(request: pytest.FixtureRequest, hub_makers: Makers, tmp_path: Path) -> Iterator[HubServer]:
    """A running hub of a test's own; settings come as an indirect parameter."""
    with hub_makers.server(tmp_path / "hub", **getattr(request, "param", {})) as server:
        yield server


@pytest.fixture(scope="module")
def shared_hub_server(
    request: pytest.FixtureRequest, hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HubServer]:
    """A running hub that the tests of a module share; settings come as an indirect parameter."""
    with hub_makers.server(tmp_path_factory.mktemp("shared-hub"), **getattr(request, "param", {})) as server:
        yield server


@pytest.fixture
def start_hub(hub_makers: Makers, tmp_path: Path) -> Iterator[Callable[..., HubServer]]:
    """Starts hubs within a test: `start_hub(upload_mode="lfs")`; each has data of its own."""
    with ExitStack() as stack:
        number = iter(range(100))

        def start(**given: Any) -> HubServer:
            return stack.enter_context(hub_makers.server(tmp_path / f"hub-{next(number)}", **given))

        yield start


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs coroutines, all in one event loop, to which the connections of `hub` belong."""
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture
def hub(
    request: pytest.FixtureRequest,
    hub_makers: Makers,
    tmp_path: Path,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
) -> Iterator[Hub]:
    """An open hub with its tables and users, and no server: `run(work(hub))`."""
    settings, _ = hub_makers.settings(tmp_path / "hub", **getattr(request, "param", {}))
    opened = run(Hub.open(settings))
    yield opened
    run(opened.close())
