"""Pages that find adapters: the front page, tasks and languages, lists with facets, methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter
from markupsafe import Markup
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from .. import interest
from ..db import schema
from ..errors import BadRequest, NotFound
from ..facts import taxonomy
from ..facts.configs import members
from ..facts.taxonomy import Taxonomy
from ..http import MOST, hub_of, principal_of, unquote
from ..index import leaderboard, search
from ..index.search import Query
from ..rights import Page
from . import queries
from .charts import Point, scatter
from .drawing import placement_svg
from .formats import path
from .methods import FAMILIES, METHODS, method_of
from .pages import page, redirect
from .placement import placement_text

router = APIRouter(include_in_schema=False, route_class=Page)

TYPES = {
    "text_task": ("Tasks", "Classify, tag, answer: adapters for a task and a data set, often with a prediction head."),
    "text_lang": ("Languages", "Adapters that teach a model a language; stack one under a task adapter."),
}
FACETS = {
    "base_model": "Base model",
    "method": "Method",
    "config_name": "Named config",
    "task": "Task",
    "subtask": "Data set",
    "library": "Library",
    "head_type": "Prediction head",
    "model_type": "Model type",
    "license": "Licence",
    "type": "Kind",
}
SORTS = {
    search.RELEVANCE: "Best match",
    search.SCORE: "Best score",
    "downloads": "Most used",
    "trending": "Trending",
    "updated": "Newest",
    "created": "First published",
    "parameters": "Fewest parameters",
}
# The drawing on the front page has the method of most parts, in a model of this type.
_SHOWN = max((method.config for method in METHODS.values()), key=lambda config: len(members(config)))
_MODEL_TYPE = "bert"


@router.get("/")
async def home(request: Request) -> Response:
    """The front page."""
    hub, me = hub_of(request), await principal_of(request)
    async with hub.db.read() as conn:
        known, counts = await taxonomy.read(conn), await search.tree(conn, hub.counts)
        numbers = await queries.numbers(conn, counts, hub.counts)
        newest = await search.query(conn, Query(sort="updated", limit=6), me, facets=False, counts=hub.counts)
        used = await search.query(conn, Query(sort="downloads", limit=6), me, facets=False, counts=hub.counts)
    doors = [{"type": kind, "title": title, "text": text} for kind, (title, text) in TYPES.items()]
    for door in doors:
        door["places"] = _busiest(known, counts.get(door["type"], {}))  # type: ignore[assignment]
    return await page(
        request,
        "home.html",
        numbers=numbers,
        newest=newest.rows,
        most_used=used.rows,
        doors=doors,
        drawing=Markup(placement_svg(_SHOWN, layers=12, model_type=_MODEL_TYPE)),
    )


def _busiest(known: Taxonomy, counts: Mapping[str, Mapping[str, int]], limit: int = 14) -> list[dict[str, Any]]:
    totals = sorted(
        ((sum(parts.values()), task) for task, parts in counts.items()), key=lambda item: (-item[0], item[1])
    )
    return [{"id": task, "name": _name(known, task), "count": total} for total, task in totals[:limit]]


def _name(known: Taxonomy, task: str) -> str:
    row = known.tasks.get(task)
    return str(row["displayname"]) if row else task


# ---- tasks and languages --------------------------------------------------------------------------------------------


@router.get("/explore")
async def explore(request: Request) -> Response:
    """Both kinds of tasks begin with the more common one."""
    return redirect("/explore/text_task", 307)


@router.get("/explore/{name}")
async def explore_one(request: Request, name: str) -> Response:
    """All tasks of a kind, or one task with its data sets."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        known, counts = await taxonomy.read(conn), await search.tree(conn, hub.counts)
    if name in TYPES:
        words = request.query_params.get("q", "").strip().lower()
        tasks = [_entry(known, counts.get(name, {}), task) for task in _tasks(known, counts, name)]
        shown = [task for task in tasks if words in task["text"]]
        shown.sort(key=lambda task: (-task["count"], task["name"].lower()))
        return await page(request, "explore.html", type=name, types=TYPES, tasks=shown, all=len(tasks))
    kind = known.type_of(name) or next((kind for kind, tasks in counts.items() if name in tasks), None)
    if kind is None:
        near = known.near(name)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise NotFound(f"There is no task or language {name!r}.{hint}")
    entry, me = _entry(known, counts.get(kind, {}), name), await principal_of(request)
    async with hub.db.read() as conn:
        is_watched = await interest.is_watched(conn, me.id, "task", name)
    return await page(request, "task.html", type=kind, types=TYPES, task=entry, is_watched=is_watched)


def _tasks(known: Taxonomy, counts: Mapping[str, Mapping[str, Any]], kind: str) -> set[str]:
    return {task for task, row in known.tasks.items() if row["type"] == kind} | set(counts.get(kind, {}))


def _entry(known: Taxonomy, counts: Mapping[str, Mapping[str, int]], task: str) -> dict[str, Any]:
    """A task with its data sets, those with most adapters first."""
    here = counts.get(task, {})
    names = {subtask for place, subtask in known.subtasks if place == task} | (set(here) - {""})
    subtasks = [
        {"id": name, "count": here.get(name, 0), **_described(known.subtasks.get((task, name)), name)} for name in names
    ]
    subtasks.sort(key=lambda row: (-row["count"], row["name"].lower()))
    described = _described(known.tasks.get(task), task)
    text = " ".join([task, described["name"], *(f"{row['id']} {row['name']}" for row in subtasks)]).lower()
    return {"id": task, "count": sum(here.values()), "subtasks": subtasks, "text": text, **described}


def _described(row: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    return {"name": (row and row["displayname"]) or name, "description": (row and row["description"]) or ""}


@router.get("/explore/{task}/{subtask}")
async def place(request: Request, task: str, subtask: str) -> Response:
    """Adapters for a data set: the list, or the leaderboard."""
    view = "leaderboard" if request.query_params.get("view") == "leaderboard" else "list"
    hub, me = hub_of(request), await principal_of(request)
    async with hub.db.read() as conn:
        known = await taxonomy.read(conn)
        asked = query_of(request.query_params, task=task, subtask=subtask)
        found = await search.query(conn, asked, me, counts=hub.counts)
        row = known.subtasks.get((task, subtask))
        if row is None and not found.total and not set(request.query_params):
            near = known.near(task, subtask)
            hint = f" Did you mean {', '.join(near)}?" if near else " The tasks are listed at /explore."
            raise NotFound(f"There is no data set {task}/{subtask}.{hint}")
        chosen = {name: request.query_params.get(name) for name in ("metric", "base_model")}
        board = await leaderboard.board(conn, me, task, subtask, **chosen, unranked=view == "leaderboard")
    points = [Point(line.full_name, line.adapter["parameters"] or 0, line.value) for line in board.lines]
    plot = scatter(points, board.metric or "score", higher_is_better=board.higher_is_better)
    return await page(
        request,
        "place.html",
        view=view,
        task={"id": task, "name": _name(known, task), "type": known.type_of(task, subtask) or "text_task"},
        subtask=row or {"id": subtask, "displayname": subtask, "description": ""},
        title=(row and row["displayname"]) or subtask,
        found=found,
        facets=facets_of(found.facets, ("task", "subtask", "type")),
        board=board,
        plot=plot,
        sorts=SORTS,
        fixed=("view",),
    )


@router.get("/explore/{task}/{subtask}/{model_type}")
@router.get("/explore/{task}/{subtask}/{model_type}/{model:path}")
async def old_place(request: Request, task: str, subtask: str, model_type: str, model: str = "") -> Response:
    """Addresses of the old hub."""
    model = unquote(model).strip("/")
    chosen = f"base_model={path(model, whole=True)}" if model else f"model_type={path(model_type)}"
    return redirect(f"/explore/{path(task)}/{path(subtask)}?{chosen}", 301)


# ---- lists ----------------------------------------------------------------------------------------------------------


@router.get("/adapters")
async def adapters(request: Request) -> Response:
    """All adapters, by words and facets."""
    hub, me = hub_of(request), await principal_of(request)
    async with hub.db.read() as conn:
        found = await search.query(conn, query_of(request.query_params), me, counts=hub.counts)
    return await page(request, "adapters.html", found=found, facets=facets_of(found.facets), sorts=SORTS, fixed=())


def query_of(params: QueryParams, **fixed: str) -> Query:
    """What a page's address asks for; options that are empty or none of ours are left out."""
    given: dict[str, Any] = {name: params[name] for name in _READERS if params.get(name)}
    for name, value in given.items():
        try:
            given[name] = _READERS[name](value)
        except ValueError as error:
            raise BadRequest(f"{name}={value[:40]!r} must be {error}.") from error
    asked = Query(**{**given, **fixed})
    if asked.sort not in SORTS or (asked.sort == search.SCORE and not (asked.task and asked.subtask)):
        return replace(asked, sort=None)
    return asked


def _up_to(most: int) -> Callable[[str], int]:
    """Reads whole numbers that the database's columns hold."""

    def read(value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= most):
            raise ValueError(f"a whole number from 0 to {most}")
        return int(value)

    return read


def _factor(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1e9:
        raise ValueError("a number from 0 to 1000000000")
    return number


def _text(value: str) -> str:
    return value.replace("\0", "")[:200]


_READERS: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("q", "sort", "cursor", "namespace", "language", "fits", *search.FACETS), _text),
    "head": lambda value: value in ("1", "true", "yes"),
    "ok": lambda value: value in ("1", "true", "yes"),
    **dict.fromkeys(("rank_min", "rank_max"), _up_to(MOST)),
    "parameters_max": _up_to(2**53),
    **dict.fromkeys(("reduction_factor_min", "reduction_factor_max"), _factor),
}


def facets_of(counted: Mapping[str, Any], without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [
        {"name": name, "label": label, "values": [(str(value), number) for value, number in counted.get(name, ())]}
        for name, label in FACETS.items()
        if name not in without and counted.get(name)
    ]


# ---- methods --------------------------------------------------------------------------------------------------------


@router.get("/architectures")
async def methods(request: Request) -> Response:
    """All methods with their drawings."""
    hub, me = hub_of(request), await principal_of(request)
    async with hub.db.read() as conn:
        found = await search.query(conn, Query(limit=1), me, counts=hub.counts)
    counts = dict(found.facets.get("config_name", ()))
    return await page(request, "methods.html", families=FAMILIES, methods=METHODS, counts=counts, draw=_draw)


@router.get("/architectures/{name}")
async def method(request: Request, name: str) -> Response:
    """A named config: where it sits, its options, its paper and its adapters."""
    shown = method_of(name)
    hub, me = hub_of(request), await principal_of(request)
    async with hub.db.read() as conn:
        old = None if shown else await _architecture(conn, name)
        if shown is None and old is None:
            raise NotFound(f"There is no method {name!r}. All of them are listed at /architectures.")
        asked = Query(config_name=shown.name if shown else name, limit=10)
        found = await search.query(conn, asked, me, facets=False, counts=hub.counts)
    described = shown._asdict() if shown else old
    assert described is not None
    return await page(request, "method.html", method=described, found=found, **_drawn(described["config"]))


async def _architecture(conn: AsyncConnection, name: str) -> dict[str, Any] | None:
    """An architecture of the old hub that is no named config."""
    query = sa.select(schema.architecture).where(schema.architecture.c.name == name)
    row = (await conn.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    return {
        "name": name,
        "title": row["displayname"],
        "text": row["description"],
        "citation": row["citation"] or "",
        "config": row["config"],
        "aliases": (),
    }


def _draw(config: Mapping[str, Any]) -> Markup:
    return Markup(placement_svg(config))


def _drawn(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"drawing": _draw(config), "placement": placement_text(config)}
