"""Connections that a client leaves hanging are closed, so that many of them cannot use up the server."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["PatientProtocol"]

# Seconds to send the whole head of a request.
HEAD_SECONDS = 30.0
# Seconds in which a client that is to send a body, or to read an answer, must get on with it.
STALL_SECONDS = 60.0
LOOK_SECONDS = 10.0


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's HTTP with an end to its patience."""

    _watcher: asyncio.TimerHandle | None = None
    _head_since: float | None = None
    _progress = 0.0
    _unsent = 0

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
        """Notes that the client got on."""
        self._progress = self.loop.time()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begins to wait for the rest of a request's head."""
        if self._head_since is None:
            self._head_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_since = None
        super().on_headers_complete()

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
