"""What can go wrong between a hub and those who use it. Every error has an HTTP status and a text for a person.

`huggingface_hub` reads `X-Error-Code` to choose the exception it raises and shows `error` of the body to its user, so
texts say what was given, what is allowed and what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "HubError",
    "Moved",
    "BadRequest",
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "RepoNotFound",
    "RevisionNotFound",
    "EntryNotFound",
    "Conflict",
    "StaleParent",
    "TooLarge",
    "Unprocessable",
    "TooManyRequests",
    "Busy",
    "StorageUnavailable",
    "UpstreamUnavailable",
    "DiskFull",
]


class HubError(Exception):
    """An error with an answer.

    Args:
        message: one or two sentences for a person.
        details: further members of the JSON body, such as `candidates`.
        headers: further response headers.
    """

    status = 500
    code: str | None = None  # X-Error-Code

    def __init__(
        self, message: str, *, details: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = dict(details or {})
        self.headers = dict(headers or {})


class Moved(HubError):
    """What was asked for has another address now.

    Args:
        url: where it is. It is asked for anew each time, because the old address can be taken by something else.
    """

    status = 308

    def __init__(self, url: str) -> None:
        super().__init__(f"This has moved to {url}.", headers={"Location": url, "Cache-Control": "private, no-cache"})


class BadRequest(HubError):
    """The request is malformed or asks for something that is not allowed."""

    status = 400


class Unauthorized(HubError):
    """Nobody, or somebody unknown, asked for something that needs a token."""

    status = 401


class Forbidden(HubError):
    """The token's owner may see this but not do that."""

    status = 403


class NotFound(HubError):
    """There is no such thing."""

    status = 404


class RepoNotFound(NotFound):
    """No such repository, or a private one the caller may not see: the two look alike.

    Args:
        anonymous: nobody is logged in; then the status is 401, as the client expects.
    """

    code = "RepoNotFound"

    def __init__(self, *, anonymous: bool) -> None:
        super().__init__("Repository not found")
        self.status = 401 if anonymous else 404


class RevisionNotFound(NotFound):
    """The repository has no such branch, tag or commit."""

    code = "RevisionNotFound"


class EntryNotFound(NotFound):
    """The revision has no such file."""

    code = "EntryNotFound"


class Conflict(HubError):
    """Something of that name exists already, or a name means several things."""

    status = 409


class StaleParent(HubError):
    """The branch has moved on since the parent the client named."""

    status = 412


class TooLarge(HubError):
    """More bytes than allowed or announced."""

    status = 413


class Unprocessable(HubError):
    """The bytes are not what was announced, or not what this hub takes."""

    status = 422


class TooManyRequests(HubError):
    """A rate limit is reached.

    Args:
        wait: seconds until the next window begins.
        limit: requests per window.
        window: seconds of a window.
        kind: what is limited, such as `api`.
    """

    status = 429

    def __init__(self, kind: str, *, wait: int, limit: int, window: int) -> None:
        super().__init__(
            f"Too many requests: {limit} in {window} seconds are allowed for {kind!r}. Wait {wait} seconds.",
            headers={
                "Retry-After": str(wait),
                "RateLimit": f'"{kind}";r=0;t={wait}',
                "RateLimit-Policy": f'"fixed window";"{kind}";q={limit};w={window}',
            },
        )


class Busy(HubError):
    """The hub has more to do than it can."""

    status = 503

    def __init__(self, message: str, *, wait: int = 10) -> None:
        super().__init__(message, headers={"Retry-After": str(wait)})


class StorageUnavailable(HubError):
    """The blob storage does not answer."""

    status = 503


class UpstreamUnavailable(HubError):
    """The hub behind this one does not answer, or not in a way that can be believed."""

    status = 502


class DiskFull(HubError):
    """There is no room for these bytes."""

    status = 507
