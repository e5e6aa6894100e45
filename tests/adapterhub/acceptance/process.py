"""A hub in a process of its own: its memory can be read, and it can be killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from adapterhub.settings import MiB
from tests.adapterhub.conftest import Makers


@dataclass(frozen=True)
class HubProcess:
    """A hub with the users of `HubServer`.

    Attributes:
        url: its address.
        pid: of its process.
        data: its folder.
        tokens: of its users.
        log: what it has written.
    """

    url: str
    pid: int
    data: Path
    tokens: dict[str, str]
    log: Path

    def client(self, name: str | None = "alice") -> httpx.Client:
        """An HTTP client with a token, or without one for None."""
        headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def memory(self) -> float:
        """Its resident memory, in MiB."""
        return self._status("VmRSS")

    def peak(self) -> float:
        """The most it ever had since `forget_peak`, in MiB."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Lets `peak` begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def seconds(self) -> float:
        """Processor time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, name: str) -> float:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.split(f"{name}:")[1].split()[0]) * 1024 / MiB


@contextmanager
def running(makers: Makers, folder: Path, *options: str) -> Iterator[HubProcess]:
    """`adapterhub serve` while the block runs; there are no limits on requests unless `options` set some."""
    data, log = folder / "hub", folder / "log.txt"
    settings, tokens = makers.settings(data)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "adapterhub", "serve", f"--port={port}", f"--data={data}"]
    command += [f"--db={settings.db}", f"--blobs={settings.blobs}"]
    command += options if any(option.startswith("--limits") for option in options) else ("--limits=off", *options)
    with open(log, "wb") as written, subprocess.Popen(command, stdout=written, stderr=written) as process:
        try:
            _wait(url, process, log)
            yield HubProcess(url, process.pid, data, tokens, log)
        finally:
            process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"The hub did not start:\n{log.read_text()}")
