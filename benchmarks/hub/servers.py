"""Servers in processes of their own, on free ports, each ended with its block."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: on 127.0.0.1.
        ready: seconds from its start to its first answer.
    """

    port: int
    process: psutil.Process
    ready: float

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def _tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def memory(self) -> float:
        """Resident memory of it and its children, in MiB."""
        return float(sum(process.memory_info().rss for process in self._tree)) / 2**20

    def peak(self) -> float:
        """The most that it ever had since `forget_peak`, in MiB; of its children, what they have now."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        return own + self.memory() - float(self.process.memory_info().rss) / 2**20

    def forget_peak(self) -> None:
        """Lets `peak` begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def seconds(self) -> float:
        """Processor time of it and its children."""
        return float(sum(sum(process.cpu_times()[:2]) for process in self._tree))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def hub(data: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """`adapterhub serve` on a folder of data, without limits."""
    port = port or free_port()
    command = [sys.executable, "-m", "adapterhub", "serve", f"--port={port}", f"--data={data}", "--limits=off"]
    with _started([*command, *options], port, "/readyz") as server:
        yield server


@contextmanager
def baseline(name: str, **environment: str) -> Iterator[Server]:
    """An application of `benchmarks.hub.baselines`, run like the hub."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"benchmarks.hub.baselines:{name}", "--factory", f"--port={port}"]
    command += ["--no-access-log", "--log-level=warning"]
    with _started(command, port, "/openapi.json", **environment) as server:
        yield server


_NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1; user root;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    location /static/ {{ alias {files}/; }}
    location /inside/ {{ internal; alias {blobs}/; }}
    location / {{ proxy_pass http://127.0.0.1:{hub}; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


def has_nginx() -> bool:
    """Whether nginx is installed."""
    return shutil.which("nginx") is not None


@contextmanager
def nginx(folder: Path, files: Path, blobs: Path, hub_port: int) -> Iterator[Server]:
    """nginx: `/static/` is a folder, all else is the hub's, whose `X-Accel-Redirect` to `/inside/` it follows."""
    port = free_port()
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, files=files, blobs=blobs, hub=hub_port))
    with _started(["nginx", "-c", str(config)], port, "/static/") as server:
        yield server


@contextmanager
def _started(command: Sequence[str], port: int, path: str, **environment: str) -> Iterator[Server]:
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as process:
        try:
            while not _answers(port, path):
                if process.poll() is not None or time.perf_counter() - began > 60:
                    raise RuntimeError(f"{' '.join(command[:4])} … did not start; what it said stands above.")
                time.sleep(0.01)
            yield Server(port, psutil.Process(process.pid), time.perf_counter() - began)
        finally:
            if process.poll() is not None:
                print(f"  {command[2]} ended by itself, with status {process.returncode}", file=sys.stderr)
            process.terminate()


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
