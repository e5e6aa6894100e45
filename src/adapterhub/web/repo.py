"""The pages of one repository: card, config, files, versions, results, checks and settings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fastapi import APIRouter
from markupsafe import Markup
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from .. import interest
from ..changes import manage
from ..content import cards, render
from ..content.cards import Card, InvalidCard
from ..db.counts import Counts
from ..errors import BadRequest, EntryNotFound, HubError, Moved
from ..facts import configs
from ..http import hub_of, principal_of, unquote, whole
from ..index import compat, search
from ..index.search import Query
from ..index.yanks import set_yank
from ..methods import UNION
from ..repos import commits, refs, repos
from ..repos.commits import Commit
from ..repos.files import Entry, Manifest, RepoFiles
from ..repos.repos import Repo
from ..rights import Page
from ..settings import KiB
from . import queries
from .charts import sparkline
from .drawing import placement_svg
from .formats import path as quoted
from .methods import method_of
from .pages import form_of, page, redirect, unified
from .placement import placement_text
from .snippets import snippets

router = APIRouter(include_in_schema=False, route_class=Page)

_ONE = "/{namespace}/{name}"
_SHOWN_BYTES = 512 * KiB
_HISTORY = 50


# ---- what the pages share -------------------------------------------------------------------------------------------


async def opened(request: Request, conn: AsyncConnection, tab: str, **rights: bool) -> dict[str, Any]:
    """What every page of a repository shows.

    Args:
        tab: the page's own.
        rights: as for `repos.find`.

    Raises:
        Moved: the address has a former name of the repository.
    """
    params, me = request.path_params, await principal_of(request)
    name = f"{params['namespace']}/{params['name']}"
    repo = await repos.find(conn, me, name, **rights)
    if repo.full_name.lower() != name.lower():
        raise Moved(_address(request, repo))
    row = await queries.adapter_of(conn, repo)
    return {
        "tab": tab,
        "repo": repo,
        "row": row,
        "is_adapter": row is not None and row["library"] != "other",
        "may_write": me.may_write(repo.namespace, repo.full_name),
        "may_admin": me.may_admin(repo.namespace),
        "discussions_open": await queries.open_discussions(conn, repo),
        "is_liked": await interest.is_liked(conn, me.id, repo),
        "yanked": repo.yanked or (row and await queries.yank_of(conn, repo, row["oid"])),
    }


def _address(request: Request, repo: Repo) -> str:
    """The address of a page under the present name of its repository."""
    below = request.scope["raw_path"].decode("latin-1").split("?")[0].split("/", 3)[3:]
    query = f"?{request.url.query}" if request.url.query else ""
    return "/".join([f"/{quoted(repo.full_name)}", *below]) + query


async def _at(conn: AsyncConnection, repo: Repo, revision: str) -> tuple[Commit, Manifest]:
    commit = await commits.resolve(conn, repo, revision)
    return commit, await commits.manifest_of(conn, commit.tree)


async def _tell_if_yanked(conn: AsyncConnection, shown: dict[str, Any], commit: Commit) -> None:
    """Lets a page of one revision say whether this one was yanked."""
    shown["yanked"] = shown["repo"].yanked or await queries.yank_of(conn, shown["repo"], commit.oid)


async def _text(files: RepoFiles, path: str, limit: int = _SHOWN_BYTES) -> str | None:
    """A file's text; None where it has none that could be shown."""
    entry = files.manifest.get(path)
    if entry is None or entry.size > limit:
        return None
    try:
        return (await files.read(path, limit)).decode("utf-8")
    except (UnicodeDecodeError, HubError):
        return None


# ---- card and config ------------------------------------------------------------------------------------------------


@router.get(_ONE)
async def card(request: Request) -> Response:
    """The card, and beside it what is known of the adapter."""
    hub, me = hub_of(request), await principal_of(request)
    pinned = request.query_params.get("revision") or None
    async with hub.db.read() as conn:
        shown = await opened(request, conn, "card")
        repo: Repo = shown["repo"]
        commit, manifest = await _at(conn, repo, pinned or repo.default_branch)
        await _tell_if_yanked(conn, shown, commit)
        side = await _side(conn, me, repo, shown["row"], hub.counts) if shown["is_adapter"] else {}
    read = await _card(RepoFiles(hub, manifest))
    html = await asyncio.to_thread(_rendered, read.body, repo.full_name, pinned or repo.default_branch)
    return await page(
        request,
        "repo/card.html",
        **shown,
        **side,
        **_cites(shown["row"], repo),
        commit=commit,
        pinned=pinned,
        files=len(manifest),
        html=Markup(html),
        snippets=_snippets(shown, manifest, hub.settings.public_url, pinned),
    )


async def _card(files: RepoFiles) -> Card:
    text = await _text(files, "README.md")
    try:
        return cards.parse(text or "")
    except InvalidCard:
        return Card({}, text or "")


@lru_cache(maxsize=256)
def _rendered(body: str, full_name: str, revision: str) -> str:
    return render.render(body, repo=full_name, revision=revision)


def _snippets(shown: Mapping[str, Any], manifest: Manifest, endpoint: str, pinned: str | None) -> list[Any]:
    if not shown["is_adapter"]:
        return []
    weights = next((path for path in manifest if path.endswith(".safetensors")), None)
    info = {**shown["row"], "full_name": shown["repo"].full_name, "weights": weights}
    return snippets(info, endpoint=endpoint, revision=pinned)


async def _side(conn: AsyncConnection, me: Any, repo: Repo, row: Mapping[str, Any], counts: Counts) -> dict[str, Any]:
    asked = Query(base_model=row["base_model"], limit=6)
    others = await search.query(conn, asked, me, facets=False, counts=counts)
    return {
        "spark": sparkline(await queries.downloads_by_day(conn, repo)),
        "dependencies": await queries.dependencies(conn, repo),
        "dependents": await queries.dependents(conn, me, repo, row["legacy_id"]),
        "others": [other for other in others.rows if other["repo_id"] != repo.id][:5] if row["base_model"] else [],
        "evaluations": await queries.evaluations(conn, repo),
        "shape": await compat.shape_of(conn, me, row["base_model"]) if row["base_model"] else None,
    }


def _cites(row: Mapping[str, Any] | None, repo: Repo) -> dict[str, Any]:
    """What to cite: the adapter, as its card says or else by its address, and its method."""
    citation = (row or {}).get("card", {}).get("citation") if row else None
    method = method_of(row["config_name"]) if row else None
    return {"citation": citation if isinstance(citation, str) else None, "method": method}


@router.get(_ONE + "/config")
async def config(request: Request) -> Response:
    """Where the adapter sits, and all of its options."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        shown = await opened(request, conn, "config")
        _, manifest = await _at(conn, shown["repo"], shown["repo"].default_branch)
    text = await _text(RepoFiles(hub, manifest), "adapter_config.json")
    row = shown["row"] or {}
    value = row.get("config") or {}
    layers = row.get("layers")
    return await page(
        request,
        "repo/config.html",
        **shown,
        config=value,
        options=_options(value),
        text=_pretty(text),
        drawing=Markup(placement_svg(value, layers=layers, model_type=row.get("model_type"))),
        placement=placement_text(value, layers=layers),
        method=method_of(row.get("config_name")),
    )


def _options(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Any, bool]]]]:
    """Options in groups, one for each member of a union, each with whether it says nothing."""
    if config.get("architecture") == UNION:
        return [(str(configs.method(member) or ""), _rows(member)) for member in configs.members(config)]
    return [("", _rows(config))]


def _rows(config: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    has_phm = bool(config.get("phm_layer"))
    rows = [
        (str(key), json.dumps(value, ensure_ascii=False), not value or (_is_phm(str(key)) and not has_phm))
        for key, value in config.items()
    ]
    return sorted(rows, key=lambda row: row[2])


def _is_phm(key: str) -> bool:
    """Whether an option only matters to Compacter."""
    return key.startswith("hypercomplex") or "phm" in key.lower()


def _pretty(text: str | None) -> str:
    try:
        return json.dumps(json.loads(text or ""), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text or ""


# ---- files ----------------------------------------------------------------------------------------------------------


@router.get(_ONE + "/tree/{revision}")
@router.get(_ONE + "/tree/{revision}/{folder:path}")
async def files(request: Request, revision: str, folder: str = "") -> Response:
    """The files of a revision, folder by folder."""
    revision, folder = unquote(revision), unquote(folder).strip("/")
    async with hub_of(request).db.read() as conn:
        shown = await opened(request, conn, "files")
        commit, manifest = await _at(conn, shown["repo"], revision)
        await _tell_if_yanked(conn, shown, commit)
        branches, tags = await _names(conn, shown["repo"])
    folders, entries = _listing(manifest, folder)
    if folder and not folders and not entries:
        raise EntryNotFound(f"{folder} does not exist on {revision!r}.")
    return await page(
        request,
        "repo/files.html",
        **shown,
        revision=revision,
        commit=commit,
        folder=folder,
        folders=folders,
        entries=entries,
        branches=branches,
        tags=tags,
        total=sum(entry.size for entry in manifest.values()),
    )


def _listing(manifest: Manifest, folder: str) -> tuple[list[tuple[str, int, int]], list[Entry]]:
    """Folders of a folder, with the number and bytes of their files, and its files."""
    start = f"{folder}/" if folder else ""
    entries: list[Entry] = []
    folders: dict[str, tuple[int, int]] = {}
    for path, entry in manifest.items():
        if not path.startswith(start):
            continue
        first, slash, _ = path[len(start) :].partition("/")
        if slash:
            number, size = folders.get(first, (0, 0))
            folders[first] = number + 1, size + entry.size
        else:
            entries.append(entry)
    return [(name, *numbers) for name, numbers in sorted(folders.items())], entries


async def _names(conn: AsyncConnection, repo: Repo) -> tuple[list[str], list[str]]:
    """Names of branches and of tags."""
    listed = [(prefix, await refs.listing(conn, repo, prefix)) for prefix in (refs.HEADS, refs.TAGS)]
    heads, tags = ([row["name"].removeprefix(prefix) for row in rows] for prefix, rows in listed)
    return heads, tags


@router.get(_ONE + "/blob/{revision}/{path:path}")
async def blob(request: Request, revision: str, path: str) -> Response:
    """One file: its text where it has one, the tensors of weights, and its hashes."""
    hub, revision, path = hub_of(request), unquote(revision), unquote(path)
    async with hub.db.read() as conn:
        shown = await opened(request, conn, "files")
        repo: Repo = shown["repo"]
        commit, manifest = await _at(conn, repo, revision)
        await _tell_if_yanked(conn, shown, commit)
    entry = manifest.get(path)
    if entry is None:
        raise EntryNotFound(f"{path} does not exist on {revision!r} of {repo.full_name}.")
    stored = RepoFiles(hub, manifest)
    text = await _text(stored, path)
    html = await _shown_text(path, text, repo, revision) if text is not None else None
    return await page(
        request,
        "repo/blob.html",
        **shown,
        revision=revision,
        commit=commit,
        entry=entry,
        html=html and Markup(html),
        lines=(text or "").count("\n") + bool(text and not text.endswith("\n")),
        is_markdown=path.lower().endswith(".md"),
        tensors=await stored.header(path),
    )


async def _shown_text(path: str, text: str, repo: Repo, revision: str) -> str:
    if path.lower().endswith(".md"):
        body = (await _card_of(text)).body
        folder = path.rpartition("/")[0]
        return await asyncio.to_thread(render.render, body, repo=repo.full_name, revision=revision, folder=folder)
    return await asyncio.to_thread(render.render_text, path, text)


async def _card_of(text: str) -> Card:
    try:
        return cards.parse(text)
    except InvalidCard:
        return Card({}, text)


# ---- versions -------------------------------------------------------------------------------------------------------


@router.get(_ONE + "/versions")
@router.get(_ONE + "/commits/{revision}")
async def versions(request: Request, revision: str = "") -> Response:
    """Branches, tags and commits; and what became of the config between two of them."""
    hub, params = hub_of(request), request.query_params
    start = whole(params, "p", 0, most=10**6) * _HISTORY
    async with hub.db.read() as conn:
        shown = await opened(request, conn, "versions")
        repo: Repo = shown["repo"]
        revision = unquote(revision) or repo.default_branch
        head = await commits.resolve(conn, repo, revision)
        history = await commits.history(conn, repo, head.oid, _HISTORY, start)
        branches = await refs.listing(conn, repo, refs.HEADS)
        tags = await refs.listing(conn, repo, refs.TAGS)
        depth = await commits.depth(conn, repo, head.oid)
    old, new = params.get("from"), params.get("to")
    diff = await _config_diff(request, repo, old, new) if old and new else None
    return await page(
        request,
        "repo/versions.html",
        **shown,
        revision=revision,
        history=history,
        branches=branches,
        tags=tags,
        depth=depth,
        start=start,
        size=_HISTORY,
        compared=(old, new),
        diff=diff,
    )


async def _config_diff(request: Request, repo: Repo, old: str, new: str) -> list[tuple[str, str]]:
    hub = hub_of(request)
    texts = []
    for revision in (old, new):
        async with hub.db.read() as conn:
            _, manifest = await _at(conn, repo, revision)
        texts.append(_pretty(await _text(RepoFiles(hub, manifest), "adapter_config.json")))
    return unified(*texts)


@router.get(_ONE + "/commit/{oid}")
async def one_commit(request: Request, oid: str) -> Response:
    """What a commit changed, and what the checks say of it."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        shown = await opened(request, conn, "versions")
        repo: Repo = shown["repo"]
        commit, after = await _at(conn, repo, oid)
        before = (await _at(conn, repo, commit.parent))[1] if commit.parent else {}
        checks = await queries.report(conn, repo, commit.oid)
        yank = await queries.yank_of(conn, repo, commit.oid)
    changes = [(path, before.get(path), after.get(path)) for path in sorted(before.keys() | after.keys())]
    changed = [change for change in changes if change[1] != change[2]]
    return await page(
        request,
        "repo/commit.html",
        **shown,
        commit=commit,
        checks=checks,
        yank=yank,
        changes=await diffs(request, changed),
    )


async def diffs(
    request: Request, changes: list[tuple[str, Entry | None, Entry | None]], limit: int = 50
) -> list[dict[str, Any]]:
    """Changed files, each with the difference of its text where it has one."""
    hub = hub_of(request)
    found: list[dict[str, Any]] = []
    for path, old, new in changes:
        sides = [RepoFiles(hub, {path: entry} if entry else {}) for entry in (old, new)]
        texts = [await _text(side, path, 64 * KiB) if len(found) < limit else None for side in sides]
        known = [text is not None or entry is None for text, entry in zip(texts, (old, new), strict=True)]
        lines = unified(*(text or "" for text in texts)) if all(known) else []
        found.append({"path": path, "old": old, "new": new, "lines": lines})
    return found


# ---- results, checks, settings --------------------------------------------------------------------------------------


@router.get(_ONE + "/results")
async def results(request: Request) -> Response:
    """The numbers that the card reports."""
    async with hub_of(request).db.read() as conn:
        shown = await opened(request, conn, "results")
        rows = await queries.evaluations(conn, shown["repo"])
    return await page(request, "repo/results.html", **shown, rows=rows)


@router.get(_ONE + "/checks")
async def checks(request: Request) -> Response:
    """What the checks say of a revision."""
    async with hub_of(request).db.read() as conn:
        shown = await opened(request, conn, "checks")
        revision = request.query_params.get("revision") or shown["repo"].default_branch
        commit = await commits.resolve(conn, shown["repo"], revision)
        await _tell_if_yanked(conn, shown, commit)
        report = await queries.report(conn, shown["repo"], commit.oid)
    return await page(request, "repo/checks.html", **shown, revision=revision, commit=commit, checks=report or [])


@router.get(_ONE + "/settings")
async def settings(request: Request) -> Response:
    """Rename, hide, yank, delete."""
    async with hub_of(request).db.read() as conn:
        shown = await opened(request, conn, "settings", admin=True)
    return await page(request, "repo/settings.html", **shown)


@router.post(_ONE + "/settings")
async def change(request: Request) -> Response:
    """One of the forms of the settings."""
    hub, form, me = hub_of(request), await form_of(request), await principal_of(request)
    name = f"{request.path_params['namespace']}/{request.path_params['name']}"
    action = str(form.get("action", ""))
    if action == "delete":
        if str(form.get("confirm", "")) != name:
            raise BadRequest(f"To delete it, type its full name: {name}.")
        await manage.delete(hub, me, name)
        return redirect(f"/{quoted(request.path_params['namespace'])}")
    if action == "move":
        name = (await manage.move(hub, me, name, str(form.get("new", "")).strip())).full_name
    elif action in ("private", "public"):
        await manage.set_private(hub, me, name, action == "private")
    elif action in ("yank", "unyank"):
        reason = str(form.get("reason", "")).strip()[:2000] or "No reason was given."
        async with hub.db.write() as conn:
            repo = await repos.find(conn, me, name, admin=True)
            await set_yank(conn, me, repo, None, reason if action == "yank" else None)
    return redirect(f"/{quoted(name)}/settings")
