"""Finding repositories, and looking into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa
from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..accounts import Principal
from ..db import schema
from ..db.lookup import Lookup
from ..errors import BadRequest, EntryNotFound
from ..http import flag, hub_of, iso, principal_of, unquote
from ..index import search
from ..index.derive import derive
from ..repos import commits
from ..repos.files import Manifest, RepoFiles
from ..repos.repos import Repo
from ..storage import git
from .shared import (
    API,
    PAGE,
    Plain,
    at_revision,
    file_object,
    folder_object,
    full_object,
    model_object,
    paths_of,
    tree_objects,
)
from .upstream import or_upstream

router = APIRouter(include_in_schema=False, route_class=Plain)

_CONDITIONS = 32  # each is asked of the database by itself
_COMMON = 2000  # a tag that so many repositories have is common
_SORT = {
    "downloads": schema.repo.c.downloads,
    "likes": schema.repo.c.likes,
    "lastModified": schema.repo.c.updated,
    "last_modified": schema.repo.c.updated,
    "createdAt": schema.repo.c.created,
    "created_at": schema.repo.c.created,
    "trendingScore": schema.repo.c.trending,
    "trending_score": schema.repo.c.trending,
}
_FACTS = ("tags", "library_name", "pipeline_tag", "card", "model_config", "oid")
_COLUMNS = [schema.adapter.c[name] for name in _FACTS]
_FACTS_AT = Lookup(
    sa.select(*_COLUMNS).where(
        schema.adapter.c.repo_id == sa.bindparam("repo_id"), schema.adapter.c.oid == sa.bindparam("oid")
    )
)


# ---- lists ----------------------------------------------------------------------------------------------------------


@router.get("/api/models")
async def listing(request: Request) -> Response:
    """Repositories that the caller may see: filtered, sorted, in pages."""
    hub, principal, query = hub_of(request), await principal_of(request), request.query_params
    limit, offset = _number(query.get("limit"), PAGE), _number(query.get("cursor"), 0)
    full = flag(query.get("full")) or flag(query.get("cardData")) or flag(query.get("config")) or "expand" in query
    async with hub.db.read() as conn:
        found = await _select(request, conn, principal, min(limit, PAGE) + 1, offset)
        page = found[: min(limit, PAGE)]
        shown = [model_object(repo, facts["oid"], facts) for repo, facts in page]
        if full:
            trees = await _manifests(conn, page)
            shown = [full_object(repo, facts["oid"], facts, trees[repo.id], blobs=False) for repo, facts in page]
    headers = {}
    if len(found) > len(page) and limit:
        rest = [(key, value) for key, value in query.multi_items() if key != "cursor"]
        following = hub.url("api/models?" + urlencode([*rest, ("cursor", str(offset + len(page)))]))
        headers["Link"] = f'<{following}>; rel="next"'
    return JSONResponse(shown, headers=headers)


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise BadRequest(f"{text!r} must be a number of at most nine digits.")
    return int(text)


async def _select(
    request: Request, conn: AsyncConnection, principal: Principal, limit: int, offset: int
) -> list[tuple[Repo, Mapping[str, Any]]]:
    query = request.query_params
    tags = [tag for text in query.getlist("filter") for tag in text.split(",") if tag]
    tags += [value for name in ("pipeline_tag", "library", "language") for value in query.getlist(name)]
    tags += [f"dataset:{value}" for value in query.getlist("dataset")]
    tags, searches = list(dict.fromkeys(tags)), list(dict.fromkeys(query.getlist("search")))
    if len(tags) + len(searches) > _CONDITIONS:
        raise BadRequest(f"{len(tags) + len(searches)} conditions are too many: give at most {_CONDITIONS}.")
    where: list[sa.ColumnElement[bool]] = [schema.repo.c.yanked.is_(None), _visible(principal)]
    for tag in tags:
        where.append(await _tagged(conn, tag))
    if author := query.get("author"):
        where.append(sa.func.lower(schema.repo.c.namespace) == author.lower())
    for words in searches:
        where.append(await search.holds(conn, await search.corrected(conn, words)))
    order = _SORT.get(query.get("sort", ""), schema.repo.c.updated)
    descending = query.get("direction", "-1") == "-1"
    statement = (
        sa.select(*_REPO, *_COLUMNS)
        .join(schema.adapter, schema.adapter.c.repo_id == schema.repo.c.id)
        .where(*where)
        .order_by(order.desc() if descending else order.asc(), schema.repo.c.id)
    )
    rows = (await conn.execute(statement.limit(limit).offset(offset))).all()
    return [(Repo(*row[: len(_REPO)]), dict(zip(_FACTS, row[len(_REPO) :]))) for row in rows]


async def _tagged(conn: AsyncConnection, tag: str) -> sa.ColumnElement[bool]:
    """Whether a repository has a tag. One that many have is looked up for each of them, in the order of the list."""
    holders = sa.select(schema.adapter_tag.c.repo_id).where(schema.adapter_tag.c.tag == tag)
    some = sa.select(sa.func.count()).select_from(holders.limit(_COMMON).subquery())
    if (await conn.execute(some)).scalar_one() < _COMMON:
        return schema.repo.c.id.in_(holders)
    return holders.where(schema.adapter_tag.c.repo_id == schema.repo.c.id).exists()


_REPO = [schema.repo.c[name] for name in Repo.__dataclass_fields__]


def _visible(principal: Principal) -> sa.ColumnElement[bool]:
    public = sa.not_(schema.repo.c.private)
    own = [name for name in principal.namespaces if principal.may_read(name, name)]
    return sa.or_(public, schema.repo.c.namespace.in_(own)) if own else public


async def _manifests(conn: AsyncConnection, page: Sequence[tuple[Repo, Mapping[str, Any]]]) -> dict[int, Manifest]:
    return {
        repo.id: await commits.manifest_of(conn, (await commits.find(conn, repo, facts["oid"])).tree)
        for repo, facts in page
    }


# ---- one repository -------------------------------------------------------------------------------------------------


@router.get(API + "/revision/{revision:path}")
@router.get(API)
@or_upstream
async def info(request: Request) -> Response:
    """A repository at a revision."""
    repo, head = await at_revision(request)
    manifest = await commits.manifest_at(hub_of(request).db, head.tree)
    known = await hub_of(request).db.look_up(_FACTS_AT, repo_id=repo.id, oid=head.oid)
    facts = dict(zip(_FACTS, known[0])) if known else await _derived(request, manifest)
    shown = full_object(repo, head.oid, facts, manifest, blobs=flag(request.query_params.get("blobs")))
    if (reason := await _yanked(request, repo, head.oid)) is not None:
        shown["yanked"] = reason
    return JSONResponse(shown)


async def _yanked(request: Request, repo: Repo, oid: str) -> str | None:
    """Why a repository, or this commit of it, was yanked, if it was."""
    if repo.yanked is not None:
        return repo.yanked
    found = await hub_of(request).db.look_up(_YANK, repo_id=repo.id, oid=oid)
    return str(found[0].reason) if found else None


_YANK = Lookup(
    sa.select(schema.yank.c.reason).where(
        schema.yank.c.repo_id == sa.bindparam("repo_id"), schema.yank.c.oid == sa.bindparam("oid")
    )
)


async def _derived(request: Request, manifest: Manifest) -> Mapping[str, Any]:
    """What another revision than the newest of the default branch says of itself."""
    record = await derive(RepoFiles(hub_of(request), manifest))
    return {name: getattr(record, name) for name in _FACTS if name != "oid"}


@router.get(API + "/tree/{revision}")
@router.get(API + "/tree/{revision}/{path:path}")
@or_upstream
async def tree(request: Request) -> Response:
    """Files and folders, in pages."""
    folder = unquote(request.path_params.get("path", "")).strip("/")
    query = request.query_params
    offset = _number(query.get("cursor"), 0)
    _, head = await at_revision(request)
    manifest = await commits.manifest_at(hub_of(request).db, head.tree)
    shown = tree_objects(manifest, folder, recursive=flag(query.get("recursive")))
    if folder and not shown:
        raise EntryNotFound(
            f'{folder} does not exist on "{unquote(request.path_params["revision"])}"',
            headers={"X-Repo-Commit": head.oid},
        )
    if flag(query.get("expand")):
        last = {"id": head.oid, "title": head.title, "date": iso(head.date)}
        shown = [{**item, "lastCommit": last} for item in shown]
    headers = {"X-Repo-Commit": head.oid}
    if offset + PAGE < len(shown):
        rest = [(key, value) for key, value in query.multi_items() if key != "cursor"]
        path = request.scope["raw_path"].decode().split("?")[0]
        following = hub_of(request).url(f"{path}?{urlencode([*rest, ('cursor', str(offset + PAGE))])}")
        headers["Link"] = f'<{following}>; rel="next"'
    return JSONResponse(shown[offset : offset + PAGE], headers=headers)


@router.post(API + "/paths-info/{revision:path}")
@or_upstream
async def paths_info(request: Request) -> Response:
    """Some files and folders; those that do not exist are left out."""
    _, head = await at_revision(request)  # first, so that the body is unread where another hub is asked
    paths = await paths_of(request)
    manifest = await commits.manifest_at(hub_of(request).db, head.tree)
    folders = git.folder_oids((path, entry.oid) for path, entry in manifest.items())
    shown = []
    for path in paths:
        if path in manifest:
            shown.append(file_object(manifest[path]))
        elif path.strip("/") in folders:
            shown.append(folder_object(path.strip("/"), folders[path.strip("/")]))
    return JSONResponse(shown)
