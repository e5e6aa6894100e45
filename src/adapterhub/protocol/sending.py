"""Sending a file: whole, a range of it, or its headers alone."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

__all__ = ["disposition", "send"]


def disposition(path: str) -> str:
    """The header that makes browsers store a file."""
    # Never shown in place: what users upload must not run as a page of this site.
    return f"attachment; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1], safe='')}"


def send(
    request: Request,
    headers: Mapping[str, str],
    size: int,
    read: Callable[[int, int], AsyncIterator[bytes]],
    *,
    inside: str | None = None,
) -> Response:
    """The bytes of a file, or the range of them that is asked for.

    Args:
        headers: of this file: an ETag, and what else tells of it.
        read: gives the bytes from a place up to, and without, another.
        inside: the path at which the proxy in front of this hub finds the file itself.
    """
    headers = {
        **headers,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, max-age=0, must-revalidate",
    }
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(size)})
    if inside is not None:
        return Response(headers={**headers, "X-Accel-Redirect": inside})
    start, end = 0, size
    status = 200
    if (found := _range(request, size, headers["ETag"])) is not None:
        start, end = found
        if start >= end:
            return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
        status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    return StreamingResponse(read(start, end), status, headers)


def _range(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """The range that is asked for, as a half-open interval, empty where it lies behind the end.

    None for the whole: where no range is asked for, or of another version, or several, or something that is no range.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", "").strip(), re.ASCII)
    if match is None or not (match[1] or match[2]) or request.headers.get("if-range", etag) != etag:
        return None
    if not match[1]:
        return max(size - int(match[2]), 0), size
    first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    return None if match[2] and last < first else (first, min(last + 1, size))
