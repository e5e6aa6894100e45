"""Finding adapters, and looking into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import Path, Query
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from ..accounts import Principal
from ..db import schema
from ..errors import BadRequest, NotFound
from ..http import hub_of
from ..hub import Hub
from ..index import compat, resolver, search
from ..index.examine import examine
from ..repos import commits, repos
from ..repos.commits import Commit
from ..repos.files import RepoFiles
from ..repos.repos import Repo
from .models import Ambiguous, Compatible, Detail, FoundFile, Page, Resolved, Snippet, Stacked, Unknown
from .shared import Caller, Choice, Name, Revision, Text, part

__all__ = ["router"]

router = part("adapters")

Whole = Annotated[int | None, Query(ge=0, lt=2**53)]
Size = Annotated[int | None, Query(ge=1, lt=2**31)]
Factor = Annotated[float | None, Query(ge=0, lt=1e9)]
_FOUND = 100  # files that are listed for a hash


@router.get("/adapters", response_model=Page)
async def listing(
    request: Request,
    caller: Caller,
    q: Annotated[Text | None, Query(description="Words that must all be found, or what they mean.")] = None,
    type: Choice = None,
    task: Choice = None,
    subtask: Choice = None,
    language: Choice = None,
    base_model: Choice = None,
    fits: Annotated[
        Text | None, Query(description="A base model: adapters for it, and for others of its type and sizes.")
    ] = None,
    model_type: Choice = None,
    library: Choice = None,
    method: Choice = None,
    config_name: Choice = None,
    namespace: Choice = None,
    head: Annotated[bool | None, Query(description="With or without a prediction head.")] = None,
    head_type: Choice = None,
    license: Choice = None,
    reduction_factor_min: Factor = None,
    reduction_factor_max: Factor = None,
    rank_min: Size = None,
    rank_max: Size = None,
    parameters_max: Whole = None,
    ok: Annotated[bool, Query(description="Only adapters of which no check fails.")] = False,
    sort: Annotated[
        Literal["relevance", "score", "downloads", "trending", "updated", "created", "parameters"] | None,
        Query(
            description="By default `relevance` where there are words, `score` where `fits`, `task` and `subtask` are "
            "given, else `downloads`. `score` needs `task` and `subtask`: the data set whose numbers are compared."
        ),
    ] = None,
    cursor: Choice = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 30,
) -> Any:
    """Adapters that pass all filters, with the numbers that other filters would leave."""
    given = {name: value for name, value in locals().items() if name in search.Query.__dataclass_fields__}
    hub = hub_of(request)
    async with hub.db.read() as conn:
        page = await search.query(conn, search.Query(**given), caller, counts=hub.counts)
    facets = {name: dict(values) for name, values in page.facets.items()}
    rest = {name: getattr(page, name) for name in ("total", "cursor", "corrected", "near")}
    return {"adapters": page.rows, "facets": facets, **rest}


@router.get("/resolve", response_model=Resolved, responses={404: {"model": Unknown}, 409: {"model": Ambiguous}})
async def resolve(
    request: Request,
    caller: Caller,
    name: Annotated[Text, Query(min_length=1, examples=["sentiment/sst-2@ukp"])],
    model: Annotated[Text | None, Query(examples=["bert-base-uncased"], description="The base model.")] = None,
    config: Annotated[Text | None, Query(description="A config's name, or its id of 16 hexadecimal digits.")] = None,
    version: Revision = None,
) -> Any:
    """The one adapter that a name means: `org/name`, `@org/file`, `task/subtask`, `task` or `subtask`.

    The last three may end in `@org`. If nothing fits, the answer is 404 with what is `near`; if several adapters fit
    and nothing says which is meant, 409 with all of them as `candidates`.
    """
    async with hub_of(request).db.read() as conn:
        hit = await resolver.resolve(conn, caller, name, model=model, config=config, version=version)
    return {**hit.facts, "id": hit.id, "revision": hit.revision, "reason": hit.reason, "others": hit.others}


@router.get("/compatible", response_model=Compatible)
async def compatible(
    request: Request,
    caller: Caller,
    model: Choice = None,
    model_type: Choice = None,
    hidden_size: Size = None,
    layers: Size = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Any:
    """Adapters for a model, and those for other models of the same type, hidden size and number of layers."""
    if not model and not (model_type and hidden_size):
        raise BadRequest("Give 'model', the name of a base model, or 'model_type' and 'hidden_size'.")
    async with hub_of(request).db.read() as conn:
        return await compat.compatible(conn, caller, model, compat.Shape(model_type, hidden_size, layers), limit=limit)


@router.get("/stack", response_model=Stacked)
async def stack(
    request: Request,
    caller: Caller,
    model: Annotated[
        Text, Query(min_length=1, examples=["bert-base-multilingual-cased"], description="The base model.")
    ],
    language: Choice = None,
    task: Choice = None,
    subtask: Choice = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> Any:
    """What may be stacked on a base model: adapters for languages, and adapters for tasks to stand on them."""
    asked = search.Query(fits=model, library="adapters", limit=limit)
    async with hub_of(request).db.read() as conn:
        below, above = await search.stack(conn, asked, caller, language=language, task=task, subtask=subtask)
    return {"below": below, "above": above}


# ---- one adapter ----------------------------------------------------------------------------------------------------


@router.get("/adapters/{namespace}/{name}", response_model=Detail)
async def detail(request: Request, caller: Caller, namespace: Name, name: Name, rev: Revision = None) -> Any:
    """All that is known of an adapter, at its newest or another revision."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        repo = await repos.find(conn, caller, f"{namespace}/{name}")
        head = await commits.resolve(conn, repo, rev or repo.default_branch)
        about = {
            **{key: getattr(repo, key) for key in ("full_name", "private", "created", "likes", "downloads")},
            "updated": head.date,
            "oid": head.oid,
            "dependents": await _dependents(conn, caller, repo),
            "yanked": await _yanked(conn, repo, head.oid),
        }
        indexed = await _indexed(conn, repo, head)
    return {**(indexed or await _derived(hub, repo, head)), **about}


async def _indexed(conn: AsyncConnection, repo: Repo, head: Commit) -> dict[str, Any] | None:
    """What the index holds, if it is of this commit."""
    query = sa.select(schema.adapter).where(schema.adapter.c.repo_id == repo.id, schema.adapter.c.oid == head.oid)
    row = (await conn.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    below = sa.select(schema.dependency).where(schema.dependency.c.repo_id == repo.id)
    numbers = sa.select(schema.evaluation).where(schema.evaluation.c.repo_id == repo.id).order_by("id")
    dependencies = (await conn.execute(below.order_by("target"))).mappings().all()
    return {**row, "dependencies": dependencies, "evaluations": (await conn.execute(numbers)).mappings().all()}


async def _derived(hub: Hub, repo: Repo, head: Commit) -> dict[str, Any]:
    """The same, read from the files of another commit."""
    async with hub.db.read() as conn:
        manifest = await commits.manifest_of(conn, head.tree)
    record = await examine(hub, repo, RepoFiles(hub, manifest))
    below = [{"target": target, "note": note} for target, note in sorted(record.dependencies.items())]
    numbers = [item._asdict() for item in record.evaluations]
    return {**record.columns(), "dependencies": below, "evaluations": numbers}


async def _dependents(conn: AsyncConnection, caller: Principal, repo: Repo) -> list[str]:
    legacy = sa.select(schema.adapter.c.legacy_id).where(schema.adapter.c.repo_id == repo.id)
    names = [repo.full_name, *filter(None, (await conn.execute(legacy)).scalars())]
    query = (
        sa.select(schema.repo.c.namespace, schema.repo.c.name)
        .join(schema.adapter, schema.adapter.c.repo_id == schema.repo.c.id)
        .join(schema.dependency, schema.dependency.c.repo_id == schema.repo.c.id)
        .where(schema.dependency.c.target.in_(names), search.visible_to(caller))
        .order_by(schema.repo.c.key)
        .limit(_FOUND)
    )
    return [f"{namespace}/{name}" for namespace, name in (await conn.execute(query))]


async def _yanked(conn: AsyncConnection, repo: Repo, oid: str) -> str | None:
    query = sa.select(schema.yank.c.reason).where(schema.yank.c.repo_id == repo.id, schema.yank.c.oid == oid)
    reason: str | None = (await conn.execute(query)).scalar()
    return repo.yanked if repo.yanked is not None else reason


@router.get("/snippet/{namespace}/{name}", response_model=list[Snippet])
async def snippet(
    request: Request,
    caller: Caller,
    namespace: Name,
    name: Name,
    library: Annotated[Text | None, Query(description="For this library only, such as `peft`.")] = None,
    rev: Revision = None,
) -> Any:
    """Code that loads an adapter, for each library that can."""
    from ..web import snippets

    hub = hub_of(request)
    async with hub.db.read() as conn:
        repo = await repos.find(conn, caller, f"{namespace}/{name}")
        head = await commits.resolve(conn, repo, rev or repo.default_branch)
        manifest = await commits.manifest_of(conn, head.tree)
        facts = await _indexed(conn, repo, head)
    weights = next((path for path in manifest if path.endswith(".safetensors")), None)
    info = {**(facts or await _derived(hub, repo, head)), "full_name": repo.full_name, "weights": weights}
    made = snippets.snippets(info, endpoint=hub.settings.public_url, revision=rev)
    found = [item for item in made if library in (None, item.id)]
    if not found:
        raise NotFound(f"There is no code for {library!r}, only for {', '.join(item.id for item in made)}.")
    return found


# ---- files by their hash --------------------------------------------------------------------------------------------


@router.get("/by-hash/{sha256}", response_model=list[FoundFile])
async def by_hash(request: Request, caller: Caller, sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")]) -> Any:
    """Where the hub has a file with these bytes, in repositories that the caller may read."""
    async with hub_of(request).db.read() as conn:
        query = (
            sa.select(schema.blob_use.c.repo_id)
            .join(schema.repo, schema.repo.c.id == schema.blob_use.c.repo_id)
            .where(schema.blob_use.c.sha256 == sha256, _readable(caller))
            .order_by(schema.blob_use.c.repo_id)
            .limit(_FOUND)
        )
        holders = [await repos.by_id(conn, repo_id) for repo_id in (await conn.execute(query)).scalars().all()]
        readable = [repo for repo in holders if not repo.private or caller.may_read(repo.namespace, repo.full_name)]
        found = [file for repo in readable for file in await _files(conn, repo, sha256)]
    if not found:
        raise NotFound(f"No file that you may see has the SHA-256 {sha256}.")
    return found[:_FOUND]


def _readable(caller: Principal) -> sa.ColumnElement[bool]:
    if caller.is_admin:
        return sa.true()
    return sa.or_(sa.not_(schema.repo.c.private), schema.repo.c.namespace.in_(list(caller.namespaces)))


async def _files(conn: AsyncConnection, repo: Repo, sha256: str) -> Sequence[Mapping[str, Any]]:
    """The files of a repository with these bytes, in its newest revision that has any."""
    head = await commits.resolve(conn, repo, repo.default_branch)
    named = (
        sa.select(schema.commit.c.oid, schema.commit.c.tree)
        .join(schema.tree, schema.tree.c.oid == schema.commit.c.tree)
        .where(schema.commit.c.repo_id == repo.id, sa.cast(schema.tree.c.manifest, sa.Text).contains(sha256))
        .order_by(schema.commit.c.date.desc(), schema.commit.c.oid)
        .limit(1)
    )
    for oid, tree in [(head.oid, head.tree), *(await conn.execute(named))]:
        files = (await commits.manifest_of(conn, tree)).values()
        if same := [file for file in files if file.sha256 == sha256]:
            place = {"full_name": repo.full_name, "revision": oid}
            return [{**place, "path": file.path, "size": file.size} for file in same]
    return []
