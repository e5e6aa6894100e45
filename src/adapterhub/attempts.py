"""Attempts with a password: how many an account takes, from wherever they come.

Addresses are cheap, so attempts count for the account's name; whether there is such an account makes no difference. A
browser that has logged in before brings a signed cookie and has a count of its own. So a stranger who uses up the count
keeps out other strangers only, until the window ends; sessions and tokens go on in any case.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from . import names
from .db import schema
from .errors import Busy, Forbidden, TooManyRequests

if TYPE_CHECKING:
    from .hub import Hub

__all__ = ["KNOWN_DAYS", "attempt", "known_browser", "remember"]

KNOWN_DAYS = 180
_KIND = "password"
_rate = schema.rate.c


@asynccontextmanager
async def attempt(hub: Hub, name: str, browser: str = "") -> AsyncIterator[None]:
    """Counts an attempt with a password, unless the block ends without an error, or was too busy to look.

    Args:
        name: of the account, as it was given.
        browser: what `known_browser` says, or anything else that only its owner could bring.

    Raises:
        TooManyRequests: there were too many.
    """
    if _KIND not in hub.settings.limits:
        yield
        return
    limit, seconds = hub.settings.limits[_KIND]
    window, passed = divmod(int(time.time()), seconds)
    key = f"{_KIND}:{hashlib.sha256(f'{names.key(name)}:{browser}'.encode()).hexdigest()}"
    # Counted before it is made: attempts that come at once are not more than the limit either.
    if await _add(hub, key, window) > limit:
        wait = seconds - passed
        error = TooManyRequests(_KIND, wait=wait, limit=limit, window=seconds)
        error.message = (
            f"Too many wrong passwords for {name!r}: {limit} in {seconds} seconds are allowed. Wait {wait} seconds, or "
            "use a browser that has logged in to this account before."
        )
        raise error
    try:
        yield
    except Busy:
        await _take_back(hub, key, window)
        raise
    await _take_back(hub, key, window)


async def _take_back(hub: Hub, key: str, window: int) -> None:
    """Counts one attempt less."""
    async with hub.db.write() as conn:
        same = (_rate.key == key, _rate.window == window)
        await conn.execute(sa.update(schema.rate).where(*same).values(count=_rate.count - 1))


async def _add(hub: Hub, key: str, window: int) -> int:
    """The number of attempts in a window, with one more."""
    add = (sqlite.insert if hub.db.is_sqlite else postgresql.insert)(schema.rate).values(
        key=key, window=window, count=1
    )
    more = add.on_conflict_do_update(index_elements=["key", "window"], set_={"count": _rate.count + 1})
    old = (_rate.key.startswith(f"{_KIND}:"), _rate.window < window)
    async with hub.db.write() as conn:
        await conn.execute(sa.delete(schema.rate).where(*old))
        return int((await conn.execute(more.returning(_rate.count))).scalar_one())


def remember(hub: Hub, name: str) -> str:
    """The value of a cookie for a browser that has logged in to an account."""
    browser = secrets.token_hex(16)
    expires, signature = hub.signer.sign("browser", names.key(name), browser, lifetime=KNOWN_DAYS * 86400)
    return f"{browser}.{expires}.{signature}"


def known_browser(hub: Hub, name: str, cookie: str | None) -> str:
    """Which browser brings a cookie of `remember` for this account; empty for any other."""
    browser, _, rest = (cookie or "").partition(".")
    expires, _, signature = rest.partition(".")
    try:
        hub.signer.verify(int(expires), signature, "browser", names.key(name), browser)
    except (ValueError, Forbidden):
        return ""
    return browser
