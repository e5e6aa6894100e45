"""What the routes of the API share: who calls, how errors look, how large bodies and which texts may be."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from ..accounts import Principal
from ..errors import TooLarge
from ..http import check_values, principal_of
from ..rights import Guarded
from ..settings import MiB

__all__ = [
    "ERRORS",
    "PREFIX",
    "Body",
    "Caller",
    "Choice",
    "FullName",
    "Name",
    "Problem",
    "Revision",
    "Text",
    "User",
    "part",
]

PREFIX = "/api/v1"
_MAX_BODY = 32 * MiB


class Problem(BaseModel):
    """What went wrong; some errors have further members."""

    model_config = ConfigDict(extra="allow")

    error: str = Field(description="For a person: what was given, what is allowed, and what to do next.")


class Body(BaseModel):
    """A request's body: of exactly these members and types."""

    model_config = ConfigDict(strict=True, extra="forbid")


_STATUSES = {
    400: "The request asks for something that is not allowed.",
    401: "A valid token is needed.",
    403: "The caller may not do this.",
    404: "There is no such thing, or it is hidden from the caller.",
    409: "Something of that name exists already, or a name means several things.",
    413: "The body is too large.",
    422: "A parameter or a member of the body is not as described.",
    429: "Too many requests; `Retry-After` tells when to try again.",
    503: "The storage does not answer.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text} for status, text in _STATUSES.items()
}

_SEGMENT = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_FULL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"

# Databases take no text with a NUL in it.
Text = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00]*$")]
Choice = Annotated[Text | None, Query()]
Name = Annotated[str, Path(pattern=_SEGMENT, max_length=96)]
FullName = Annotated[str, StringConstraints(pattern=_FULL_NAME, max_length=193)]
Revision = Annotated[Text | None, Query(min_length=1, description="Branch, tag or commit; by default the newest.")]


class _Limited(Guarded):
    """A route that refuses large bodies before it reads them to the end."""

    prefix = PREFIX

    def inner_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, behind a limit."""
        handle = super().inner_handler()

        async def limited(request: Request) -> Response:
            body = bytearray()
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_BODY:
                    raise TooLarge(f"The request's body has more than {_MAX_BODY} bytes.")
            check_values(body)

            async def receive() -> Message:
                return {"type": "http.request", "body": bytes(body), "more_body": False}

            return await handle(Request(request.scope, receive))

        return limited


def part(tag: str) -> APIRouter:
    """A router for some of the API's routes."""
    return APIRouter(tags=[tag], route_class=_Limited)


# ---- the caller -----------------------------------------------------------------------------------------------------

_bearer = HTTPBearer(auto_error=False, description="A token of this hub: `ahb_…`.")


async def _user(request: Request, _: Annotated[Any, Security(_bearer)]) -> Principal:
    principal = await principal_of(request)
    principal.require_user()
    return principal


Caller = Annotated[Principal, Depends(principal_of)]
User = Annotated[Principal, Depends(_user)]
