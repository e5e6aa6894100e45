"""What is measured. Each experiment takes a `Bench` and yields figures; baselines are measured in turn with the hub."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from adapterhub import accounts
from adapterhub.hub import Hub
from adapterhub.ops.setup import prepare
from adapterhub.settings import Settings
from benchmarks.hub import load, servers
from benchmarks.hub.rows import LARGEST, SMALL, fill
from benchmarks.hub.servers import Server

MiB = 1 << 20


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        case: what was measured.
        value: what came out.
        unit: of it, and of the goal.
        goal: what it should be at least (`more` is better) or at most.
        facts: the figures it was made of.
    """

    case: str
    value: float
    unit: str
    goal: float | None = None
    more: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.more else self.value <= self.goal


@dataclass
class Bench:
    """Where and how thoroughly things are measured.

    Attributes:
        folder: for data; emptied afterwards.
        quick: fewer rounds, smaller files, fewer adapters.
    """

    folder: Path
    quick: bool
    token: str = ""

    def many(self, full: int, quick: int) -> int:
        """A number, depending on how thorough the run is."""
        return quick if self.quick else full

    @property
    def adapters(self) -> int:
        """How many the large hub has."""
        return self.many(100_000, 10_000)

    def data(self, name: str, count: int = 0) -> Path:
        """A hub's folder with the user `ann` and `count` adapters; made once."""
        folder = self.folder / name
        if not folder.exists():
            began = time.perf_counter()
            self.token = asyncio.run(_fill(folder, count))
            print(f"  {folder.name}: {count} adapters in {time.perf_counter() - began:.0f} s", flush=True)
        return folder


async def _fill(data: Path, count: int) -> str:
    hub = await Hub.open(Settings(data=data))
    await prepare(hub)
    async with hub.db.write() as conn:
        user = await accounts.create_user(conn, "ann", None)
        token = await accounts.create_token(conn, user, "bench", "write")
        if count:
            await fill(conn, count)
    await hub.close()
    return token


# ---- what the hub is asked for --------------------------------------------------------------------------------------


def _call(server: Server, token: str, method: str, path: str, body: bytes, kind: str = "application/json") -> Any:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
    asked = urllib.request.Request(server.url + path, body, headers, method=method)
    with urllib.request.urlopen(asked, timeout=600) as answer:
        return json.loads(answer.read() or b"{}")


def _create(server: Server, token: str, name: str) -> None:
    _call(server, token, "POST", "/api/repos/create", json.dumps({"name": name}).encode())


def _announce(server: Server, token: str, name: str, oid: str, size: int) -> str:
    """The address, without the host, to which a large file is to be sent."""
    body = json.dumps({"operation": "upload", "objects": [{"oid": oid, "size": size}]}).encode()
    found = _call(server, token, "POST", f"/{name}.git/info/lfs/objects/batch", body)
    href: str = found["objects"][0]["actions"]["upload"]["href"]
    return "/" + href.split("/", 3)[3]


def _commit(server: Server, token: str, name: str, *lines: dict[str, Any]) -> None:
    header = {"key": "header", "value": {"summary": "bench"}}
    body = "\n".join(map(json.dumps, (header, *lines))).encode()
    _call(server, token, "POST", f"/api/models/{name}/commit/main", body, "application/x-ndjson")


def _tensors(megabytes: int, seed: int = 0) -> tuple[bytes, bytes]:
    """Head and one repeated block of a safetensors file of so many MiB and a little."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [megabytes * MiB], "data_offsets": [0, megabytes * MiB]}})
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, hashlib.shake_128(bytes([seed])).digest(MiB)


def _in_turn(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Figures of all sides, measured in turn, every other round backwards; the first round does not count."""
    found: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for i in range(len(sides))[:: 1 if number % 2 else -1]:
            value = sides[i]()
            if number:
                found[i].append(value)
    return found


def _ratio(numerators: list[float], denominators: list[float]) -> float:
    return median(a / b for a, b in zip(numerators, denominators))


# ---- experiments ----------------------------------------------------------------------------------------------------


def download(bench: Bench) -> Iterator[Figure]:
    """A large file, against a static file server."""
    size, name, data = bench.many(256, 64), "ann/large", bench.data("small")
    head, block = _tensors(size)
    path = bench.folder / "static" / "file"
    path.parent.mkdir()
    path.write_bytes(head + block * size)
    oid, length = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
    url = f"/{name}/resolve/main/a.safetensors"
    with servers.hub(data) as hub, servers.baseline("plain", BENCH_FILE=str(path), BENCH_FOLDER=".") as plain:
        _create(hub, bench.token, name)
        put = _announce(hub, bench.token, name, oid, length)
        load.upload(hub.port, put, path.read_bytes(), 1)
        entry = {"path": "a.safetensors", "algo": "sha256", "oid": oid, "size": length}
        _commit(hub, bench.token, name, {"key": "lfsFile", "value": entry})
        rounds = bench.many(15, 5)
        sides = [lambda: load.download(hub.port, url), lambda: load.download(plain.port, "/file")]
        ours, theirs = _in_turn(rounds, *sides)
        facts = {"hub MB/s": _speed(length, ours), "FileResponse MB/s": _speed(length, theirs)}
        yield Figure("download / uvicorn FileResponse", _ratio(theirs, ours), "ratio", 0.8, True, facts)
    if not servers.has_nginx():
        return
    blobs, port = data / "blobs", servers.free_port()
    with (
        servers.hub(data, "--accel-prefix=/inside", port=port) as behind,
        servers.hub(data) as hub,
        servers.nginx(bench.folder / "nginx", path.parent, blobs, behind.port) as nginx,
    ):
        sides = [
            lambda: load.download(hub.port, url),
            lambda: load.download(nginx.port, url),
            lambda: load.download(nginx.port, "/static/file"),
        ]
        alone, accelerated, static = _in_turn(rounds, *sides)
        facts = {"hub MB/s": _speed(length, alone), "nginx MB/s": _speed(length, static)}
        yield Figure("download / nginx static", _ratio(static, alone), "ratio", 0.8, True, facts)
        facts = {"hub behind nginx MB/s": _speed(length, accelerated), "nginx MB/s": _speed(length, static)}
        yield Figure("download through X-Accel / nginx static", _ratio(static, accelerated), "ratio", 0.95, True, facts)


def _speed(size: int, seconds: list[float]) -> float:
    return round(size / 1e6 / median(seconds), 1)


def upload(bench: Bench) -> Iterator[Figure]:
    """A large file by LFS, against an application that hashes, writes and flushes it."""
    size, name, data = bench.many(256, 64), "ann/uploads", bench.data("small")
    seeds = iter(range(1, 255))
    with servers.hub(data) as hub, servers.baseline("plain", BENCH_FILE="", BENCH_FOLDER=str(bench.folder)) as plain:
        _create(hub, bench.token, name)

        def send(megabytes: int) -> float:
            head, block = _tensors(megabytes, next(seeds))
            digest = hashlib.sha256(head)
            for _ in range(megabytes):
                digest.update(block)
            length = len(head) + megabytes * MiB
            put = _announce(hub, bench.token, name, digest.hexdigest(), length)
            return _upload(hub.port, put, head, block, megabytes)

        def sink() -> float:
            head, block = _tensors(size, 255)
            return _upload(plain.port, "/sink", head, block, size)

        ours, theirs = _in_turn(bench.many(9, 3), lambda: send(size), sink)
        facts = {"hub MB/s": _speed(size * MiB, ours), "sink MB/s": _speed(size * MiB, theirs)}
        yield Figure("LFS upload / bare sink", _ratio(theirs, ours), "ratio", 0.6, True, facts)
        hub.forget_peak()
        large = bench.many(5120, 512)
        seconds = send(large)
        facts = {"file MiB": large, "MB/s": round(large * MiB / 1e6 / seconds, 1)}
        yield Figure(f"memory during an LFS upload of {large} MiB", hub.peak(), "MiB", 150, facts=facts)


def _upload(port: int, path: str, head: bytes, block: bytes, count: int) -> float:
    """As `load.upload`, with a head before the blocks."""
    with load.connected(port) as connection:
        began, buffer = time.perf_counter(), bytearray()
        length = len(head) + len(block) * count
        connection.sendall(load.request("PUT", path, Content_Length=str(length)) + head)
        for _ in range(count):
            connection.sendall(block)
        status, _ = load.read_head(connection, buffer)
        if status != 200:
            raise RuntimeError(f"PUT {path}: {status} {bytes(buffer[:300])!r}")
        return time.perf_counter() - began


_PUSH = """
import sys, time
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[2])
began = time.perf_counter()
api.upload_file(path_or_fileobj=sys.argv[1], path_in_repo="a.safetensors", repo_id=sys.argv[2])
print(time.perf_counter() - began)
"""


def xet(bench: Bench) -> Iterator[Figure]:
    """A large file by Xet, as the real client sends it."""
    size, data = bench.many(512, 64), bench.data("small")
    path = bench.folder / "random.safetensors"
    head, _ = _tensors(size)
    with open(path, "wb") as file:
        file.write(head)
        for _ in range(size):
            file.write(os.urandom(MiB))
    with servers.hub(data) as hub:
        home = str(bench.folder / "home")
        given = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": bench.token, "HF_HOME": home}
        given |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        hub.forget_peak()
        before = hub.seconds()
        done = subprocess.run(
            [sys.executable, "-c", _PUSH, str(path), "ann/xet"], env=given, capture_output=True, text=True, check=True
        )
        spent, wall = hub.seconds() - before, float(done.stdout)
        facts = {"file MiB": size, "seconds of the server": round(spent, 2), "MB/s with the client": size / wall}
        yield Figure("Xet upload, for each core of the server", size * MiB / 1e6 / spent, "MB/s", 60, True, facts)
        yield Figure(f"memory during a Xet upload of {size} MiB", hub.peak(), "MiB", 300, facts=facts)


def info(bench: Bench) -> Iterator[Figure]:
    """One repository of many, against a FastAPI application that answers with the same JSON."""
    name, data = "ann/reviews", bench.data("large", bench.adapters)
    path = f"/api/models/{name}"
    with servers.hub(data) as hub:
        _push(hub, bench.token, name)
        with urllib.request.urlopen(hub.url + path) as answer:
            (bench.folder / "answer.json").write_bytes(answer.read())
        with servers.baseline("json_api", BENCH_JSON=str(bench.folder / "answer.json")) as plain:
            seconds = bench.many(3, 1)
            sides = [lambda: load.rate(hub.port, path, seconds), lambda: load.rate(plain.port, path, seconds)]
            ours, theirs = _in_turn(bench.many(7, 3), *sides)
            facts = {"hub requests/s": round(median(ours)), "bare FastAPI requests/s": round(median(theirs))}
            yield Figure("GET /api/models/{id} / bare FastAPI", _ratio(ours, theirs), "ratio", 0.5, True, facts)
        yield _latency("GET /api/models/{id}, p99", hub, path, bench.many(3000, 500), 0.99, 50)
        missing = f"/{name}/resolve/main/no-such-file.json"
        count = bench.many(3000, 500)
        yield _latency("HEAD of a missing file, p95", hub, missing, count, 0.95, 10, method="HEAD", status=404)


def search(bench: Bench) -> Iterator[Figure]:
    """Lists and pages of a large hub."""
    data = bench.data("large", bench.adapters)
    base = "base_model=bert-base-uncased"
    asked = (
        ("list with two filters that many pass, p95", f"/api/v1/adapters?task={LARGEST[0]}&{base}", 60),
        ("list with two filters that few pass, p95", f"/api/v1/adapters?task={SMALL[0]}&{base}", 60),
        ("GET /api/models with two filters, p95", "/api/models?filter=bert,adapters&limit=30", 60),
        ("search for words, p95", f"/api/v1/adapters?q={quote('roberta sentiment')}", 40),
        ("search for a task by name, p95", f"/api/v1/adapters?q={quote('question answering')}", 40),
        ("search for data sets, p95", f"/api/v1/adapters?q={quote('movie review')}", 40),
        ("search for a model by abbreviation, p95", "/api/v1/adapters?q=mbert", 40),
        ("search for a method by abbreviation, p95", "/api/v1/adapters?q=lora", 40),
        ("search with a typo, p95", "/api/v1/adapters?q=sentment", 40),
        ("search with three typos, p95", f"/api/v1/adapters?q={quote('natral lnaguage infrence')}", 40),
        ("search for what is not there, p95", "/api/v1/adapters?q=qqzzxx", 40),
        ("GET /api/models?search=, p95", "/api/models?search=roberta&limit=30", 40),
        ("list without filters, all facets, p95", "/api/v1/adapters", 60),
        ("front page, p95", "/", 150),
        ("explore page, p95", "/explore/text_task", 150),
        ("page of the largest data set, p95", f"/explore/{'/'.join(LARGEST)}", 150),
        ("page of a small data set, p95", f"/explore/{'/'.join(SMALL)}", 150),
        ("page of all adapters, p95", "/adapters", 150),
    )
    with servers.hub(data) as hub:
        for case, path, goal in asked:
            yield _latency(case, hub, path, bench.many(150, 25), 0.95, goal)


def _latency(
    case: str, hub: Server, path: str, count: int, part: float, goal: float, method: str = "GET", status: int = 200
) -> Figure:
    load.latencies(hub.port, path, 3, method=method, status=status)
    found = load.latencies(hub.port, path, count, method=method, status=status)
    facts = {"p50": round(median(found), 2), "requests": count, "path": path}
    return Figure(case, load.percentile(found, part), "ms", goal, facts=facts)


def _push(server: Server, token: str, name: str) -> None:
    """A small adapter with a card."""
    card = "---\nbase_model: bert-base-uncased\nlicense: mit\ntags: [adapterhub:sentiment/sst-2]\n---\n# Reviews\n"
    adapter = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 4, "non_linearity": "relu"}
    config: dict[str, object] = {"config": adapter}
    config |= {"model_name": "bert-base-uncased", "model_type": "bert", "hidden_size": 8}
    _create(server, token, name)
    for path, text in (("README.md", card), ("adapter_config.json", json.dumps(config))):
        content = {"path": path, "content": base64.b64encode(text.encode()).decode(), "encoding": "base64"}
        _commit(server, token, name, {"key": "file", "value": content})


def start(bench: Bench) -> Iterator[Figure]:
    """From the command to the first answer, and what a hub takes that nobody uses."""
    for case, data in (("a new hub", None), ("a large hub", bench.data("large", bench.adapters))):
        ready, memory = [], []
        for number in range(bench.many(5, 3)):
            with servers.hub(data or bench.folder / f"new-{number}") as hub:
                ready.append(hub.ready)
                time.sleep(1)
                memory.append(hub.memory())
        yield Figure(f"start of {case}", median(ready), "s", 3, facts={"worst": round(max(ready), 2)})
        yield Figure(f"idle memory of {case}", median(memory), "MiB", 150)


EXPERIMENTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    function.__name__: function for function in (download, upload, xet, info, search, start)
}
