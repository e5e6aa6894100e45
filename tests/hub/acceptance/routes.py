"""All routes of the application."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Route(NamedTuple):
    """What a client calls: `GET /api/models/{namespace}/{name}`."""

    method: str
    path: str


def routes(app: Any) -> list[Route]:
    """The routes of an application, without mounted files."""
    return [*_walk(app.routes, "")]


def _walk(found: Any, prefix: str) -> Iterator[Route]:
    for route in found:
        if (inner := getattr(route, "original_router", None)) is not None:
            yield from _walk(inner.routes, prefix + route.include_context.prefix)
        else:
            for method in sorted(getattr(route, "methods", None) or ()):
                yield Route(method, prefix + route.path)
