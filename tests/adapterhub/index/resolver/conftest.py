"""A database for rows put there by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from adapterhub.hub import Hub

Trial = Callable[[Callable[[AsyncConnection], Awaitable[Any]]], Any]


class _Undo(Exception):
    pass


@pytest.fixture(scope="module")
def trial(hub_makers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """Runs `work(conn)` in a transaction that is undone afterwards, and returns what it returns."""
    loop = asyncio.new_event_loop()
    settings, _ = hub_makers.settings(tmp_path_factory.mktemp("trial") / "hub")
    hub = loop.run_until_complete(Hub.open(settings))

    async def attempt(work: Callable[[AsyncConnection], Awaitable[Any]]) -> Any:
        result: Any = None
        try:
            async with hub.db.write() as conn:
                result = await work(conn)
                raise _Undo
        except _Undo:
            return result

    yield lambda work: loop.run_until_complete(attempt(work))
    loop.run_until_complete(hub.close())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
