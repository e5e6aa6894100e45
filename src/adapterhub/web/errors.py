"""Error pages, which say what to do next."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ..errors import HubError, RepoNotFound
from ..http import error_headers, hub_of, principal_of
from .formats import path
from .pages import environment, page

__all__ = ["error_page"]

_TITLES: Mapping[int, str] = {
    400: "That did not work",
    401: "Log in first",
    403: "You may not do that",
    404: "Nothing here",
    405: "That did not work",
    409: "That is taken",
    412: "Somebody was faster",
    413: "Too large",
    422: "The hub cannot take this",
    429: "Too many requests",
    503: "The storage does not answer",
    507: "The disk is full",
}


async def error_page(request: Request, error: HubError) -> Response:
    """The page of an error."""
    url = path(request.url.path, whole=True)
    status = error.status
    if isinstance(error, RepoNotFound):
        status = 404
    try:
        anonymous = (await principal_of(request)).is_anonymous
        answer = await page(
            request,
            "error.html",
            status,
            number=status,
            heading=_TITLES.get(status, "The hub made a mistake"),
            message=_message(error),
            candidates=[item for item in error.details.get("candidates", ()) if isinstance(item, str)],
            login=f"/login?next={url}" if anonymous and status in (401, 403, 404) else None,
            words=" ".join(request.url.path.replace("-", " ").split("/")[-2:]).strip(),
        )
    except Exception:
        answer = _plain(request, error)
    answer.headers.update(error_headers(error))
    return answer


def _message(error: HubError) -> str:
    if isinstance(error, RepoNotFound):
        return "There is no such adapter. Perhaps it was renamed or deleted, or it is private and you cannot see it."
    return error.message


def _plain(request: Request, error: HubError) -> Response:
    template = environment().from_string(
        "<!doctype html><title>{{ name }}</title><h1>{{ error.status }}</h1><p>{{ error.message }}</p><p>"
        'Try again in a minute, or go to <a href="/">the front page</a>.</p>'
    )
    html = template.render(name=hub_of(request).settings.name, error=error)
    return HTMLResponse(html, error.status)
