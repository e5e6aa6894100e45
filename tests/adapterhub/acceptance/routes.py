"""All routes of the application."""

from __future__ import annotations

from typing import Any, NamedTuple

from adapterhub import rights


class Route(NamedTuple):
    """What a client calls: `GET /api/models/{namespace}/{name}`."""

    method: str
    path: str


def routes(app: Any) -> list[Route]:
    """The routes of an application, without mounted files."""
    return [Route(method, path) for method, path, _ in rights.routes(app.routes)]


def is_page(app: Any, route: Route) -> bool:
    """Whether a route is a page of the site."""
    return any(isinstance(known, rights.Page) for *called, known in rights.routes(app.routes) if called == [*route])
