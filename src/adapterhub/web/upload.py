"""Uploading in the browser: choose files, see what the checks say, write the card, publish or suggest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

from fastapi import APIRouter
from markupsafe import Markup
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from .. import ingest, names
from ..accounts import Principal
from ..changes import committing, manage
from ..changes.committing import Committed, Put, Remove
from ..content import cards, render
from ..content.cards import InvalidCard
from ..errors import BadRequest, RepoNotFound
from ..http import hub_of, principal_of
from ..hub import Hub
from ..ingest import Staged, once
from ..repos import commits, repos
from ..repos.files import RepoFiles
from ..repos.repos import Repo, payer_of
from ..rights import Page
from ..settings import KiB, MiB
from .pages import form_of, page, redirect

router = APIRouter(include_in_schema=False, route_class=Page)

_CARD = "README.md"
_LIMITS = {"max_files": 200, "max_fields": 500, "max_part_size": 1 * MiB}
_CHUNK = 1 * MiB
_TEMPLATE = """\
---
license:
base_model:
language:
tags:
- adapters
- adapterhub:
---

# Name of the adapter

What it does, for whom, and what it was trained on.
"""


@router.get("/new")
async def new(request: Request) -> Response:
    """Another name for the upload page."""
    return redirect("/upload", 307)


@router.get("/upload")
async def upload_form(request: Request) -> Response:
    """The form: for a new repository, or for one that is there."""
    me = await principal_of(request)
    wanted = request.query_params.get("repo")
    if not wanted:
        return await _form(request, me, None, [], _TEMPLATE)
    hub = hub_of(request)
    async with hub.db.read() as conn:
        repo = await repos.find(conn, me, wanted)
        head = await commits.resolve(conn, repo, repo.default_branch)
        manifest = await commits.manifest_of(conn, head.tree)
    card = (
        (await RepoFiles(hub, manifest).read(_CARD, MiB)).decode("utf-8", "replace") if _CARD in manifest else _TEMPLATE
    )
    return await _form(request, me, repo, sorted(manifest), card)


async def _form(
    request: Request,
    me: Principal,
    repo: Repo | None,
    paths: Sequence[str],
    card: str,
    preview: str = "",
    name: str = "",
) -> Response:
    writable = [namespace for namespace in me.namespaces if me.may_write(namespace, namespace)]
    return await page(
        request,
        "upload.html",
        repo=repo,
        paths=[path for path in paths if path not in (_CARD, ".gitattributes")],
        card=card,
        namespaces=writable,
        name=name,
        may_write=repo is None or me.may_write(repo.namespace, repo.full_name),
        preview=Markup(preview),
    )


@router.post("/upload/preview")
async def preview(request: Request) -> Response:
    """The card as it will look, as a part of a page."""
    form = await form_of(request, **_LIMITS)
    return HTMLResponse(await _preview(str(form.get("card", "")), str(form.get("repo", ""))))


async def _preview(text: str, full_name: str) -> str:
    try:
        card = cards.parse(text.replace("\r\n", "\n"))
    except InvalidCard as error:
        return str(Markup('<div class="note bad"><p>{}</p></div>').format(str(error)))
    place = full_name if full_name.count("/") == 1 else "preview/card"
    return await asyncio.to_thread(render.render, card.body, repo=place)


@router.post("/upload")
async def upload(request: Request) -> Response:
    """Publishes, suggests, or (without JavaScript) shows the card."""
    me = await principal_of(request)
    form = await form_of(request, **_LIMITS)
    try:
        return await _upload(request, me, form)
    finally:
        await form.close()


async def _upload(request: Request, me: Principal, form: FormData) -> Response:
    hub = hub_of(request)
    full_name = str(form.get("repo") or f"{form.get('namespace', '')}/{str(form.get('name', '')).strip()}")
    card = str(form.get("card", "")).replace("\r\n", "\n")
    if form.get("action") == "preview":
        return await _preview_page(request, me, form, card)
    names.split(full_name)
    removed = [Remove(str(path)) for path in form.getlist("remove")]
    async with AsyncExitStack() as stack:
        staged = await _stage(hub, stack, form, card)
        if not staged and not removed:
            raise BadRequest("Choose files, or write a card: there is nothing to upload yet.")
        repo, is_new = await _repo(hub, me, full_name, private=form.get("private") == "1")
        await ingest.keep(hub, [item for _, item in staged], repo_id=repo.id, payer_id=payer_of(me, repo))
    suggest = form.get("action") == "suggest" or not me.may_write(repo.namespace, repo.full_name)
    puts = [Put(path, item.blob.sha256, _apart(hub, path, item)) for path, item in staged]
    title = str(form.get("title", "")).strip() or ("Upload adapter" if is_new else "Update files")
    made: Committed = await committing.commit(
        hub,
        me,
        repo,
        repo.default_branch,
        [*puts, *removed],
        title=title[:200],
        message=str(form.get("message", "")),
        create_pull=suggest and not is_new,
    )
    return redirect(f"/{repo.full_name}/discussions/{made.pull}" if made.pull else f"/{repo.full_name}")


async def _preview_page(request: Request, me: Principal, form: FormData, card: str) -> Response:
    repo, wanted = None, str(form.get("repo", ""))
    if wanted:
        async with hub_of(request).db.read() as conn:
            repo = await repos.find(conn, me, wanted)
    html = await _preview(card, wanted)
    return await _form(request, me, repo, [], card, html, str(form.get("name", "")))


async def _stage(hub: Hub, stack: AsyncExitStack, form: FormData, card: str) -> list[tuple[str, Staged]]:
    """Checks all bytes before anything is made; what is staged goes when the stack ends."""
    files = [file for file in form.getlist("files") if isinstance(file, UploadFile) and file.filename]
    sources: dict[str, AsyncIterator[bytes]] = {names.check_path(file.filename or ""): _chunks(file) for file in files}
    if card.strip() and card.strip() != _TEMPLATE.strip():
        sources[_CARD] = once(card.encode())
    staged: list[tuple[str, Staged]] = []
    for path, chunks in sources.items():
        item = await ingest.stage(hub, chunks, name=path)
        stack.callback(item.path.unlink, missing_ok=True)
        staged.append((path, item))
    return staged


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while data := await file.read(_CHUNK):
        yield data


async def _repo(hub: Hub, me: Principal, full_name: str, *, private: bool) -> tuple[Repo, bool]:
    """The repository of a name, made if there is none, and whether it was made."""
    try:
        async with hub.db.read() as conn:
            return await _find(conn, me, full_name), False
    except RepoNotFound:
        return await manage.create(hub, me, full_name, private=private), True


async def _find(conn: AsyncConnection, me: Principal, full_name: str) -> Repo:
    return await repos.find(conn, me, full_name)


def _apart(hub: Hub, path: str, item: Staged) -> bool:
    """Whether git would keep a file in large file storage."""
    size = item.blob.size
    return size >= hub.settings.lfs_bytes or (path.endswith(".safetensors") and size >= 256 * KiB)
