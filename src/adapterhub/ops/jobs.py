"""Timed jobs. Of several workers one runs each: who finds its lease expired takes it, for as long as its period."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ..db import schema
from ..db.engine import insert_missing
from ..db.schema import now
from . import downloads

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["JOBS", "Job", "Jobs", "run_due", "take_lease"]

_LOG = logging.getLogger("adapterhub.jobs")
_LOOK_SECONDS = 60.0


@dataclass(frozen=True)
class Job:
    """Something to do every so often."""

    name: str
    every: timedelta
    run: Callable[[Hub], Awaitable[object]]


async def _collect(hub: Hub) -> None:
    from . import gc

    await gc.collect(hub)


async def _expire(hub: Hub) -> None:
    from . import gc

    await gc.expire(hub)


async def _load(hub: Hub) -> None:
    from . import loading

    await loading.check_loading(hub)


JOBS = (
    Job("downloads", timedelta(hours=1), downloads.roll_up),
    Job("expire", timedelta(minutes=15), _expire),
    Job("gc", timedelta(hours=6), _collect),
    Job("load", timedelta(minutes=2), _load),
)


class Jobs:
    """Runs the timed jobs while the block runs.

    Args:
        enabled: whether this process runs them; what it counts it writes down in any case.

    Attributes:
        downloads: counts the downloads that this process serves.
    """

    def __init__(self, hub: Hub, *, enabled: bool = True) -> None:
        self.hub = hub
        self.enabled = enabled
        self.downloads = downloads.Counter()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Jobs:
        """Starts."""
        await self._stack.enter_async_context(self.downloads.flushing(self.hub))
        if self.enabled:
            task = asyncio.create_task(self._loop())
            self._stack.push_async_callback(_stop, task)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops: a job that runs is broken off; its transaction is undone and it is run again later."""
        await self._stack.aclose()

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await run_due(self.hub)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def run_due(hub: Hub) -> list[str]:
    """Runs the jobs whose time has come, and that nobody else runs; returns their names."""
    done = []
    for job in JOBS:
        try:
            if not await take_lease(hub, job.name, job.every):
                continue
            await job.run(hub)
            done.append(job.name)
        except Exception:
            _LOG.exception("The job %r failed; it is run again in %s.", job.name, job.every)
    return done


async def take_lease(hub: Hub, name: str, period: timedelta) -> bool:
    """Takes a lease, if it is free or has expired: then nobody else gets it for `period`."""
    holder = f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(4)}"
    table = schema.lease
    async with hub.db.write() as conn:
        await insert_missing(conn, table, [{"name": name, "holder": "", "expires": now() - timedelta(seconds=1)}])
        taken = sa.update(table).where(table.c.name == name, table.c.expires <= now())
        result = await conn.execute(taken.values(holder=holder, expires=now() + period))
        return bool(result.rowcount)
