"""Connections whose client leaves them hanging, or sends a head without end, are closed: neither can use up the server.

The parser collects a field of a head, or of the trailer behind a body in chunks, piece by piece, and copies all of it
for each piece. So what is no body is counted here while it arrives, and refused before it becomes much.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ..settings import KiB

__all__ = ["PatientProtocol"]

# Seconds to send the whole head of a request.
HEAD_SECONDS = 30.0
# Seconds in which a client that is to send a body, or to read an answer, must get on with it.
STALL_SECONDS = 60.0
LOOK_SECONDS = 10.0
# Bytes of a head, of a trailer, or of what describes the chunks of a body.
MAX_HEAD = 64 * KiB
# Fields of a head and a trailer together.
MAX_FIELDS = 100
# Seconds that a client which was refused gets to read why: what it still sends is thrown away meanwhile.
LINGER_SECONDS = 1.0
# What describes a chunk may have so many times the bytes of the chunk.
_FACTOR = 16


class _TooMuch(Exception):
    """Ends the parser's work on what a client has sent."""


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's HTTP with an end to its patience."""

    _watcher: asyncio.TimerHandle | None = None
    _head_since: float | None = None
    _progress = 0.0
    _unsent = 0
    _overhead = 0  # bytes that came lately and are no part of a body
    _fields = 0
    _head = 0  # bytes of the fields and of the address
    _refused = False

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._head_since = self._progress = self.loop.time()
        self._watcher = self.loop.call_later(LOOK_SECONDS, self._watch)

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no longer."""
        if self._watcher is not None:
            self._watcher.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Notes that the client got on, and refuses it where it sent too much that is no body."""
        if self._refused or self.transport.is_closing():
            return
        self._progress = self.loop.time()
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > MAX_HEAD and not self._refused and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """Begins to wait for the rest of a request's head."""
        if self._head_since is None:
            self._head_since = self.loop.time()
        self._fields = self._head = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Takes a part of the address."""
        self._take(0, len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a field of the head; those of a trailer are of no use to anyone."""
        self._take(1, len(name) + len(value))
        if self._head_since is not None:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_since = None
        self._overhead = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        self._overhead = max(self._overhead - _FACTOR * len(body), 0)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of a request is there."""
        self._overhead = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, or too much of it."""
        if self._fields > MAX_FIELDS or self._head > MAX_HEAD:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _take(self, fields: int, size: int) -> None:
        self._fields += fields
        self._head += size
        if self._fields > MAX_FIELDS or self._head > MAX_HEAD:
            raise _TooMuch

    def _refuse(self) -> None:
        """Answers 431 where no other answer has begun, and closes."""
        cycle = self.cycle
        if not self.pipeline and (cycle is None or cycle.response_complete or not cycle.response_started):
            text = f"The head of a request may have {MAX_FIELDS} fields and {MAX_HEAD} bytes.".encode()
            fields = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text)
            self.transport.write(STATUS_LINE[431] + fields + text)
        self._refused = True
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _watch(self) -> None:
        now = self.loop.time()
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._progress = now
        self._unsent = unsent
        slow_head = self._head_since is not None and now - self._head_since > HEAD_SECONDS
        if slow_head or (self._is_clients_turn() and now - self._progress > STALL_SECONDS):
            self.transport.abort()
            return
        self._watcher = self.loop.call_later(LOOK_SECONDS, self._watch)

    def _is_clients_turn(self) -> bool:
        cycle = self.cycle
        owes_body = cycle is not None and cycle.more_body and not cycle.response_complete and not self.flow.read_paused
        return owes_body or self.flow.write_paused
