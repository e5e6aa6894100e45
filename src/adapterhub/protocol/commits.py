"""Uploading: what the card lacks, how each file is to come, and the commit itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import names, quotas
from ..accounts import Principal
from ..changes import committing
from ..changes.committing import Committed
from ..checks.card import validate_card
from ..content import kinds
from ..errors import BadRequest, Forbidden, NotFound, Unauthorized, Unprocessable
from ..facts import taxonomy
from ..http import flag, header_line, hub_of, json_body, unquote
from ..index.examine import context_of
from ..repos import commits, discussions, refs
from ..repos.files import Manifest
from ..repos.repos import Repo, payer_of
from ..rights import Guarded
from ..settings import KiB, MiB, Settings
from ..xet.routes import token_answer
from .ndjson import read_operations
from .shared import API, caller_and_repo, commit_of

router = APIRouter(include_in_schema=False, route_class=Guarded)

_MAX_PREUPLOAD = 1000
_NO_XET = "This hub takes no Xet uploads. If yours fails, set HF_HUB_DISABLE_XET=1 in its environment and try again."


@router.post("/api/validate-yaml")
async def validate_yaml(request: Request) -> Response:
    """What is wrong with a card, before anything is uploaded."""
    content = (await json_body(request)).get("content")
    if not isinstance(content, str):
        raise BadRequest("The body needs the card's 'content', a text.")
    async with hub_of(request).db.read() as conn:
        context = await context_of(hub_of(request), conn, None, await taxonomy.read(conn))
    errors, warnings = await asyncio.to_thread(validate_card, content, context)
    shown = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return JSONResponse(shown, 400 if errors else 200)


@router.post(API + "/preupload/{revision:path}")
async def preupload(request: Request) -> Response:
    """How each file is to be uploaded, and which of them are here already."""
    hub, body = hub_of(request), await json_body(request, limit=4 * MiB)
    files = body.get("files")
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise BadRequest("The body needs 'files', a list of objects with 'path', 'size' and 'sample'.")
    if len(files) > _MAX_PREUPLOAD:
        raise BadRequest(f"{len(files)} files are too many: ask for at most {_MAX_PREUPLOAD} at once.")
    create_pull = flag(request.query_params.get("create_pr"))
    async with hub.db.read() as conn:
        principal, repo = await caller_and_repo(request, conn)
        await _require_committer(request, conn, principal, repo, create_pull=create_pull)
        head = await commit_of(request, conn, repo)
        manifest = await commits.manifest_of(conn, head.tree)
        shown = [_upload_mode(hub.settings, file, manifest) for file in files]
        sizes = [file.get("size", 0) for file in files]
        await quotas.require_room_for_sizes(hub, conn, payer_of(principal, repo) or repo.owner_id, sizes)
    # A client that tries Xet all the same shows nothing of the refusal but its number.
    warn = hub.settings.upload_mode == "lfs" and any(file["uploadMode"] == "lfs" for file in shown)
    headers = {"X-HF-Warning": f"uploads; {_NO_XET}"} if warn else {}
    return JSONResponse({"files": shown, "commitOid": head.oid}, headers=headers)


def _upload_mode(settings: Settings, file: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    path, size = names.check_path(file.get("path", "")), file.get("size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= settings.max_file:
        raise BadRequest(f"{path}: size={size!r} must be a number of bytes up to {settings.max_file}.")
    reason = kinds.refused_name(path) if settings.pickle_policy == "refuse" else None
    is_left_out = bool(reason) and path.rpartition("/")[2] == "training_args.bin"  # every Trainer pushes this pickle
    if reason and not is_left_out:
        raise BadRequest(reason)
    apart = size >= settings.lfs_bytes or (size >= 256 * KiB and path.endswith(".safetensors"))
    mode = "lfs" if apart and size and settings.upload_mode != "inline" else "regular"
    known = manifest.get(path)
    # The client compares this with its own file, by the hash of the way it would come.
    oid = (known.sha256 if mode == "lfs" else known.oid) if known and known.lfs == (mode == "lfs") else None
    return {"path": path, "uploadMode": mode, "shouldIgnore": is_left_out, "oid": oid}


@router.post(API + "/commit/{revision:path}")
async def commit(request: Request) -> Response:
    """Takes a commit, line by line."""
    hub, revision = hub_of(request), unquote(request.path_params["revision"])
    create_pull = flag(request.query_params.get("create_pr"))
    async with hub.db.read() as conn:
        principal, repo = await caller_and_repo(request, conn)
        await _require_committer(request, conn, principal, repo, create_pull=create_pull)
        # Before its bytes are taken: a commit that has nowhere to go.
        await refs.oid_of(conn, repo, refs.head_of(revision))
    header, operations = await read_operations(hub, repo, _lines(request), payer_id=payer_of(principal, repo))
    made = await committing.commit(
        hub,
        principal,
        repo,
        revision,
        operations,
        title=header.summary,
        message=header.description,
        parent=header.parent,
        create_pull=create_pull,
    )
    return JSONResponse(_answer(request, repo, made), headers=_warnings(made))


async def _require_committer(
    request: Request, conn: AsyncConnection, principal: Principal, repo: Repo, *, create_pull: bool
) -> None:
    """Members may commit; others may open a pull request in a repository that they see, and commit to their own."""
    if principal.is_anonymous:
        raise Unauthorized(f"You need a token with role 'write' to commit to {repo.full_name}.")
    if principal.may_write(repo.namespace, repo.full_name):
        return
    if create_pull or await _is_own_pull(request, conn, principal, repo):
        discussions.require_participant(principal, repo)
        return
    raise Forbidden(
        f"You don't have write access to {repo.full_name}. Use a token with role 'write' of a member, or open a pull "
        "request: create_pr=True."
    )


async def _is_own_pull(request: Request, conn: AsyncConnection, principal: Principal, repo: Repo) -> bool:
    number = re.fullmatch(refs.PULLS + r"([1-9][0-9]{0,8})", unquote(request.path_params["revision"]))
    if number is None:
        return False
    try:
        return bool((await discussions.find(conn, repo, int(number[1])))["author"] == principal.name)
    except NotFound:
        return False


def _answer(request: Request, repo: Repo, made: Committed) -> dict[str, Any]:
    hub = hub_of(request)
    shown = {
        "success": True,
        "commitOid": made.oid,
        "commitUrl": hub.url(f"{repo.full_name}/commit/{made.oid}"),
        "hookOutput": "",
    }
    if made.pull:
        shown["pullRequestUrl"] = hub.url(f"{repo.full_name}/discussions/{made.pull}")
    return shown


def _warnings(made: Committed) -> dict[str, str]:
    """The first finding of the checks, which the client prints; all stand on the page."""
    for level in ("error", "warning"):
        found = [check for check in made.checks if check["level"] == level]
        if found:
            more = f" ({len(found) - 1} more on the page)" if len(found) > 1 else ""
            return {"X-HF-Warning": header_line(f"checks; {level} in {found[0]['id']}: {found[0]['message']}{more}")}
    return {}


async def _lines(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        yield chunk


@router.get(API + "/xet-write-token/{revision:path}")
async def xet_write_token(request: Request) -> Response:
    """A token for the Xet way of uploading."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        principal, repo = await caller_and_repo(request, conn)
        discussions.require_participant(principal, repo)
    if hub.settings.upload_mode != "auto":
        raise Unprocessable(_NO_XET)
    return token_answer(hub, principal, repo)
