"""Base models: choose one, or paste its config, and see what loads into it and what may be stacked on it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from ..accounts import Principal
from ..errors import BadRequest
from ..http import MOST, hub_of, principal_of, unquote
from ..index import compat, search
from ..index.compat import Shape
from ..index.search import Query
from ..rights import Page
from . import snippets
from .browse import SORTS, facets_of, query_of
from .formats import path
from .pages import form_of, page, redirect

router = APIRouter(include_in_schema=False, route_class=Page)

_LONGEST = 200_000  # characters of a config
_STACKED = 20  # adapters of each kind to choose from


@router.get("/models")
async def models(request: Request) -> Response:
    """All base models, or what loads into a model of a type and sizes."""
    hub, me, given = hub_of(request), await principal_of(request), request.query_params
    if name := given.get("name", "").strip():
        return redirect(f"/models/{path(name, whole=True)}")
    if given.get("model_type"):
        return await _fitting(request, None, _shape(request))
    async with hub.db.read() as conn:
        found = await search.query(conn, Query(limit=1), me, counts=hub.counts)
    return await page(request, "models.html", models=found.facets.get("base_model", ()))


@router.post("/models")
async def read_config(request: Request) -> Response:
    """Reads the type and sizes of a model from its config."""
    form = await form_of(request)
    text = str(form.get("config", ""))[:_LONGEST]
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"This is no JSON: {error}. Paste the whole config.json of a model.") from error
    shape = compat.shape_in(config) if isinstance(config, dict) else Shape()
    if not shape.is_known:
        raise BadRequest(
            "This config tells no model_type or no hidden_size, so that nothing can be compared. Paste the config.json "
            "of a transformer model, or choose a base model by name."
        )
    layers = "" if shape.layers is None else f"&layers={shape.layers}"
    return redirect(
        f"/models?model_type={path(shape.model_type or '', whole=True)}&hidden_size={shape.hidden_size}{layers}"
    )


@router.get("/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    """What loads into a base model."""
    return await _fitting(request, unquote(name), None)


async def _fitting(request: Request, name: str | None, shape: Shape | None) -> Response:
    hub, me, given = hub_of(request), await principal_of(request), request.query_params
    task, _, subtask = given.get("place", "").partition("/")
    asked = query_of(given, **{key: value for key, value in (("task", task), ("subtask", subtask)) if value})
    asked = replace(asked, model_type=None if name is None else asked.model_type)
    async with hub.db.read() as conn:
        known = shape or await compat.shape_of(conn, me, name or "")
        if given.get("only") and name is not None:
            asked = replace(asked, base_model=name)
        asked = replace(asked, fits=name, shape=known)
        found = await search.query(conn, asked, me, counts=hub.counts)
        places = await search.places(conn, Query(fits=name, shape=known), me)
        stack = await _stack(conn, me, request, asked)
    return await page(
        request,
        "model.html",
        name=name,
        shape=known,
        found=found,
        places=places,
        place=f"{task}/{subtask}" if subtask else "",
        facets=facets_of(found.facets, ("model_type", *(("task", "subtask") if subtask else ()))),
        sorts=SORTS,
        stack=stack,
    )


async def _stack(conn: AsyncConnection, me: Principal, request: Request, asked: Query) -> dict[str, Any] | None:
    """Language adapters below and task adapters above, with code for the two that are chosen; None without either."""
    chosen = request.query_params
    fitting = Query(fits=asked.fits, shape=asked.shape, library="adapters", limit=_STACKED)
    languages = asked.type == "text_lang"
    at = {"language": asked.task} if languages else {"task": asked.task, "subtask": asked.subtask}
    below, above = await search.stack(conn, fitting, me, **at)
    if not below or not above:
        return None
    lower = next((row for row in below if row["full_name"] == chosen.get("below")), below[0])
    upper = next((row for row in above if row["full_name"] == chosen.get("above")), above[0])
    endpoint = hub_of(request).settings.public_url
    code = snippets.stacked(
        asked.fits or upper["base_model"], lower["full_name"], upper["full_name"], endpoint=endpoint
    )
    return {"below": below, "above": above, "lower": lower, "upper": upper, "code": code}


def _shape(request: Request) -> Shape:
    given, numbers = request.query_params, {}
    for key in ("hidden_size", "layers"):
        value = given.get(key, "")
        if value and not (value.isascii() and value.isdigit() and len(value) < 11 and 0 < int(value) <= MOST):
            raise BadRequest(f"{key}={value[:40]!r} must be a whole number from 1 to {MOST}.")
        numbers[key] = int(value) if value else None
    return Shape(given["model_type"].replace("\0", "")[:64], **numbers)
