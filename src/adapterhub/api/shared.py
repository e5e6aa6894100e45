"""What the routes of the API share: who calls, how errors look, and which texts parameters may be."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Query, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.requests import Request

from .. import accounts
from ..accounts import Principal
from ..errors import Forbidden
from ..http import principal_of

__all__ = ["ERRORS", "PREFIX", "Admin", "Body", "Caller", "Name", "Namespace", "Owner", "Problem", "Text", "User"]

PREFIX = "/api/v1"


class Problem(BaseModel):
    """What went wrong, for a person; some errors add further members."""

    model_config = ConfigDict(extra="allow")

    error: str = Field(description="What was given, what is allowed, and what to do next.")


class Body(BaseModel):
    """A request's body: of exactly these members, and of exactly these types."""

    model_config = ConfigDict(strict=True, extra="forbid")


_STATUSES = {
    400: "The request asks for something that is not allowed.",
    401: "A valid token is needed.",
    403: "The caller may not do this.",
    404: "There is no such thing, or it is hidden from the caller.",
    409: "Something of that name exists already, or a name means several things.",
    413: "The body is too large.",
    422: "A parameter or a member of the body is not as described.",
    429: "Too many requests: `Retry-After` tells when to try again.",
    503: "The storage does not answer.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text} for status, text in _STATUSES.items()
}

# No database takes a text with a NUL in it.
Text = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00]*$")]
_PART = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Namespace = Annotated[str, Path(pattern=_PART, max_length=96, description="A user's or an organisation's name.")]
Name = Annotated[str, Path(pattern=_PART, max_length=96, description="The repository's name.")]
Revision = Annotated[Text | None, Query(description="Branch, tag or commit; by default the newest of `main`.")]

_bearer = HTTPBearer(auto_error=False, description="A token of this hub: `ahb_…`.")


async def _user(request: Request, _: Annotated[Any, Security(_bearer)]) -> Principal:
    principal = await principal_of(request)
    principal.require_user()
    return principal


async def _owner(principal: Annotated[Principal, Depends(_user)]) -> Principal:
    """Whoever holds the account itself, not a part of its rights."""
    if principal.role != "write" or principal.scope:
        raise Forbidden("This needs a session, or a token with role 'write' that is not limited to some repositories.")
    return principal


async def _admin(principal: Annotated[Principal, Depends(_owner)]) -> Principal:
    accounts.require_admin(principal)
    return principal


Caller = Annotated[Principal, Depends(principal_of)]
User = Annotated[Principal, Depends(_user)]
Owner = Annotated[Principal, Depends(_owner)]
Admin = Annotated[Principal, Depends(_admin)]
