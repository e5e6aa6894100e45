"""The addresses that a client with `hf_xet` calls to upload, and the token it calls them with."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Coroutine
from typing import Any, NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .. import accounts
from ..accounts import Principal
from ..db.schema import now
from ..errors import Forbidden, HubError, NotFound, TooLarge, Unauthorized
from ..http import hub_of
from ..hub import Hub
from ..repos import repos
from ..repos.repos import Repo
from ..rights import Guarded
from . import ingest

__all__ = ["router", "token_answer"]

router = APIRouter(include_in_schema=False, route_class=Guarded)

_BASE = "/xet/{scope}"
_LIFETIME = 3600  # seconds; the client asks for a new token in time
_MAX_SHARD = 64 << 20
_PROGRESS_EVERY = 10  # seconds
_TOKEN = re.compile(r"xet_([0-9]{1,18})_([0-9a-z]{1,24})_([0-9]{1,12})_([0-9a-f]{64})")
_log = logging.getLogger(__name__)


class Upload(NamedTuple):
    """What a token allows: uploads of a user to a repository."""

    user_id: int
    repo_uid: str


# ---- tokens ---------------------------------------------------------------------------------------------------------


def token_answer(hub: Hub, principal: Principal, repo: Repo) -> JSONResponse:
    """What `GET /api/models/{repo}/xet-write-token/{revision}` answers to someone who may write there."""
    user_id = principal.require_user()
    expires, signature = hub.signer.sign("xet", user_id, repo.uid, lifetime=_LIFETIME)
    token = f"xet_{user_id}_{repo.uid}_{expires}_{signature}"
    address = hub.url(f"xet/{ingest.scope_of(user_id, now())}")
    headers = {
        "X-Xet-Cas-Url": address,
        "X-Xet-Access-Token": token,
        "X-Xet-Token-Expiration": str(expires),
        "Cache-Control": "no-store",
    }
    return JSONResponse({"casUrl": address, "exp": expires, "accessToken": token}, headers=headers)


def _upload_of(request: Request) -> Upload:
    """The upload that a request belongs to.

    Raises:
        Unauthorized: its token is missing, forged or too old, or of another scope.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    match = _TOKEN.fullmatch(token.strip())
    if scheme.lower() != "bearer" or match is None:
        raise Unauthorized("This address needs the token that the hub gave for the upload.")
    upload, expires, signature = Upload(int(match[1]), match[2]), int(match[3]), match[4]
    try:
        hub_of(request).signer.verify(expires, signature, "xet", *upload)
    except Forbidden as error:
        raise Unauthorized(error.message) from error
    if not ingest.accepts_scope(request.path_params["scope"], upload.user_id, now()):
        raise Unauthorized("This address is of another user or too old. Start the upload again.")
    return upload


# ---- routes ---------------------------------------------------------------------------------------------------------


@router.post(_BASE + "/v1/xorbs/default/{name}")
async def post_xorb(request: Request) -> Response:
    """Takes in a xorb."""
    _upload_of(request)
    hub, scope, name = hub_of(request), request.path_params["scope"], request.path_params["name"]
    announced = int(request.headers.get("content-length", 0))
    is_new = await ingest.store_xorb(hub, scope, name, request.stream(), announced=announced)
    return JSONResponse({"was_inserted": is_new})


@router.post(_BASE + "/v1/shards")
async def post_shard(request: Request) -> Response:
    """Takes in a shard; its files are stored when the answer comes."""
    work = await _work(request)
    await work
    return JSONResponse({"result": 1})


@router.post(_BASE + "/v2/shards")
async def post_shard_v2(request: Request) -> Response:
    """The same; the answer begins at once, and its last line tells how it ended.

    So the client shows what is wrong with a file; of an answer 400, it would show the number alone.
    """
    return StreamingResponse(_progress(await _work(request)), media_type="application/x-ndjson")


@router.get(_BASE + "/v1/chunks/{prefix}/{name}")
@router.post(_BASE + "/v1/xorb-grants/{prefix}/{name}")
async def not_offered(request: Request) -> Response:
    """Deduplication over all users would tell what others have: the client sends its chunks instead."""
    _upload_of(request)
    raise NotFound("This hub does not offer this. Send the chunks.")


@router.post(_BASE + "/v1/telemetry")
@router.post("/v1/telemetry")  # hf_xet 1.8.0 leaves out the path of the address it was given
async def telemetry(request: Request) -> Response:
    """Nothing is kept."""
    return Response()


async def _work(request: Request) -> Coroutine[Any, Any, object]:
    """Reads a shard; to await what is returned makes its files part of the hub."""
    hub, upload = hub_of(request), _upload_of(request)
    async with hub.db.read() as conn:
        repo = await repos.by_uid(conn, upload.repo_uid)
        payer = repos.payer_of(await accounts.principal(hub.db, upload.user_id), repo)
    body = bytearray()
    async for data in request.stream():
        body += data
        if len(body) > _MAX_SHARD:
            raise TooLarge(f"A shard may have {_MAX_SHARD} bytes; this one has more.")
    return ingest.commit_shard(hub, repo.id, request.path_params["scope"], body, payer_id=payer)


async def _progress(work: Coroutine[Any, Any, object]) -> AsyncIterator[str]:
    """Lines of JSON: that the work goes on, now and then, and at last the result or the error."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            yield _line({"type": "committing", "stage": "syncing"})
            await asyncio.wait([task], timeout=_PROGRESS_EVERY)
        task.result()
    except HubError as error:
        yield _line({"type": "error", "message": error.message, "retryable": error.status >= 500})
    except Exception:
        _log.exception("A shard could not be stored")
        yield _line({"type": "error", "message": "The hub made a mistake. It is in its log.", "retryable": False})
    else:
        yield _line({"type": "result"})
    finally:
        task.cancel()


def _line(value: object) -> str:
    return json.dumps(value) + "\n"
