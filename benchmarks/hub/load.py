"""Clients that cost little themselves: plain sockets and prepared requests."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

_CHUNK = 1 << 20


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def request(method: str, path: str, **headers: str) -> bytes:
    """A request's head."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    return "\r\n".join([*lines, *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()), "", ""]).encode()


def read_head(connection: socket.socket, buffer: bytearray) -> tuple[int, int]:
    """Reads the head of an answer; returns its status and the length of its body."""
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        data = connection.recv(_CHUNK)
        if not data:
            raise RuntimeError("The server closed the connection.")
        buffer += data
    head = bytes(buffer[:end]).lower()
    del buffer[: end + 4]
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    return int(head.split()[1]), int(length[1]) if length else 0


def download(port: int, path: str) -> float:
    """Seconds that a file takes to come."""
    sink = memoryview(bytearray(_CHUNK))
    with connected(port) as connection:
        began, buffer = time.perf_counter(), bytearray()
        connection.sendall(request("GET", path))
        status, left = read_head(connection, buffer)
        if status != 200:
            raise RuntimeError(f"GET {path}: {status}")
        left -= len(buffer)
        while left:
            left -= connection.recv_into(sink, min(left, _CHUNK))
        return time.perf_counter() - began


def upload(port: int, path: str, block: bytes, count: int) -> float:
    """Seconds until `count` times `block` has been sent and answered."""
    with connected(port) as connection:
        began, buffer = time.perf_counter(), bytearray()
        connection.sendall(request("PUT", path, Content_Length=str(len(block) * count)))
        for _ in range(count):
            connection.sendall(block)
        status, left = read_head(connection, buffer)
        if status != 200:
            raise RuntimeError(f"PUT {path}: {status} {bytes(buffer[:300])!r}, {left} bytes")
        return time.perf_counter() - began


def latencies(port: int, path: str, count: int, *, method: str = "GET", status: int = 200) -> list[float]:
    """Milliseconds of each of `count` requests, one after the other on one connection."""
    text, taken, buffer = request(method, path), [], bytearray()
    with connected(port) as connection:
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(text)
            got, length = read_head(connection, buffer)
            if method != "HEAD":
                while len(buffer) < length:
                    buffer += connection.recv(_CHUNK)
                del buffer[:length]
            taken.append((time.perf_counter() - began) * 1000)
            if got != status:
                raise RuntimeError(f"{method} {path}: {got} instead of {status}")
    return taken


def rate(port: int, path: str, seconds: float, connections: int = 8) -> float:
    """Requests a second, over several connections at once."""
    return asyncio.run(_rate(port, path, seconds, connections))


async def _rate(port: int, path: str, seconds: float, connections: int) -> float:
    text, until = request("GET", path), time.perf_counter() + seconds

    async def ask() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        done = 0
        while time.perf_counter() < until:
            writer.write(text)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"\r\ncontent-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            done += 1
        writer.close()
        return done

    began = time.perf_counter()
    done = sum(await asyncio.gather(*(ask() for _ in range(connections))))
    return done / (time.perf_counter() - began)


def percentile(values: list[float], part: float) -> float:
    """The value that `part` of the values do not exceed."""
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]
