"""Numbers, sizes and moments as people read them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from urllib.parse import quote

from markupsafe import Markup

from ..http import iso

__all__ = ["ago", "count", "decimal", "path", "plural", "size", "when"]


def count(number: int | None) -> str:
    """`894528` as `895k`, `7301` as `7.3k`; small numbers as they are."""
    return "–" if number is None else _scaled(number, ((10**9, "B"), (10**6, "M"), (10**3, "k"))) or str(number)


def size(number: int | None) -> str:
    """Bytes: `3594344` as `3.6 MB`."""
    units = ((10**9, " GB"), (10**6, " MB"), (10**3, " kB"))
    return "–" if number is None else _scaled(number, units) or f"{number} B"


def _scaled(number: int, units: tuple[tuple[int, str], ...]) -> str | None:
    for factor, unit in units:
        if number >= factor:
            value = number / factor
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}".removesuffix(".0") + unit
    return None


def decimal(value: float | None) -> str:
    """A score with up to four digits behind the point: `0.913`, `91.3`."""
    return "–" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 adapter`, `2 adapters`, `12,345 adapters`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


_STEPS = ((365 * 86400, "year"), (30 * 86400, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


def ago(moment: datetime, since: datetime | None = None) -> str:
    """How long ago a moment was: `3 days ago`."""
    passed = (since or datetime.now(timezone.utc)) - moment
    for seconds, unit in _STEPS:
        if passed >= timedelta(seconds=seconds):
            return f"{plural(int(passed.total_seconds() // seconds), unit)} ago"
    return "just now" if passed > -timedelta(minutes=1) else f"on {moment:%Y-%m-%d}"


def when(moment: datetime | None) -> Markup:
    """A `<time>` that says how long ago it was, and exactly when to those who point at it."""
    if moment is None:
        return Markup("never")
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        iso(moment), f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M}", ago(moment)
    )


def path(text: object, *, whole: bool = False) -> str:
    """Text as a part of an address; `whole` also escapes the slashes, as branches need it."""
    return quote(str(text), safe="" if whole else "/")
