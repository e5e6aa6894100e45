"""Error pages, which say what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ..errors import EntryNotFound, HubError, Moved, RepoNotFound, RevisionNotFound
from ..http import error_headers, hub_of, principal_of
from .formats import path
from .pages import page

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
    503: "Not at this moment",
    507: "The disk is full",
}


class Step(NamedTuple):
    """What to do next, and where."""

    text: str
    url: str = ""
    label: str = ""


_NEXT: Mapping[int, Step] = {
    400: Step("Go back, correct what is named above, and try again."),
    401: Step("After the login you are back on this page."),
    403: Step("Go back and load the page anew, log in as somebody who may, or ask an administrator of this hub."),
    404: Step("Check the address, or search: names of adapters, tasks, models and tags are all found."),
    405: Step("Go back and use the links and buttons of the page instead of its address."),
    409: Step("Go back and choose another name, or look first at what is there already."),
    412: Step("Load the page anew to see what has changed, then make your change once more."),
    413: Step(
        "Leave out what an adapter does not need, such as checkpoints and optimizer states; large files are "
        "pushed from Python.",
        "/docs/push",
        "How to push",
    ),
    422: Step("Go back, mend what is named above, and send it again.", "/docs/checks", "What is checked"),
    429: Step("Wait as long as it says above, then load this page again."),
    500: Step(
        "It is not your fault. Try again in a minute; if it stays, tell the administrator of this hub when it happened."
    ),
    503: Step("It is not your fault. Try again in a minute; what needs no files still works."),
    507: Step("Tell the administrator of this hub. What is stored can still be found and loaded."),
}


async def error_page(request: Request, error: HubError) -> Response:
    """The page of an error, or the way to another page."""
    if isinstance(error, Moved):
        return Response(status_code=error.status, headers=error.headers)
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
            step=_step(request, error, status),
            candidates=[item for item in error.details.get("candidates", ()) if isinstance(item, str)],
            login=f"/login?next={url}" if anonymous and status in (401, 403, 404) else None,
            words=" ".join(request.url.path.replace("-", " ").split("/")[-2:]).strip(),
        )
    except Exception:
        answer = _plain(request, error, status)
    answer.headers.update(error_headers(error))
    return answer


def _message(error: HubError) -> str:
    if isinstance(error, RepoNotFound):
        return "There is no such adapter. Perhaps it was renamed or deleted, or it is private and you cannot see it."
    return error.message


def _step(request: Request, error: HubError, status: int) -> Step:
    parts = request.url.path.split("/")
    repo = path("/".join(parts[:3]))
    if isinstance(error, RevisionNotFound) and len(parts) > 3:
        return Step("Choose one of the branches, tags and commits that it has.", f"{repo}/versions", "Its versions")
    if isinstance(error, EntryNotFound) and len(parts) > 3:
        return Step("Choose one of the files that it has, or look for it in another version.", repo, "The adapter")
    return _NEXT.get(status, _NEXT[500 if status >= 500 else 400])


# Needs neither templates nor the database.
_PLAIN = Markup(
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><h1>{status}</h1><p>{message}</p>'
    '<p>Try again in a minute, or go to <a href="/">the front page</a>.</p></html>'
)


def _plain(request: Request, error: HubError, status: int) -> Response:
    name = hub_of(request).settings.name
    return HTMLResponse(_PLAIN.format(name=name, status=status, message=_message(error)), status)
