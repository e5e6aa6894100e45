"""A connection to a server that breaks: a TCP proxy that cuts long answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Cutter:
    """Where clients connect to, and what happens to their connections.

    Attributes:
        url: the address of the proxy.
        after: answers on one connection are cut after so many bytes.
        cuts: how many more connections are cut.
        reached: set when the first is cut.
    """

    url: str
    target: tuple[str, int]
    after: int
    cuts: int
    reached: threading.Event = field(default_factory=threading.Event)

    def serve(self, listening: socket.socket) -> None:
        """Takes connections until `listening` is closed."""
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                server = socket.create_connection(self.target)
                for one, other, is_answer in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._copy, args=(one, other, is_answer), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        passed = 0
        with suppress(OSError), source, sink:
            while data := source.recv(1 << 16):
                passed += len(data)
                if is_answer and passed > self.after and self.cuts > 0:
                    self.cuts -= 1
                    self.reached.set()
                    break
                sink.sendall(data)
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting(url: str, *, after: int, cuts: int) -> Iterator[Cutter]:
    """A proxy in front of `url`."""
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        cutter = Cutter(address, (parts.hostname, parts.port), after, cuts)
        threading.Thread(target=cutter.serve, args=(listening,), daemon=True).start()
        yield cutter
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
