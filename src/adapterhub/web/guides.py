"""Documentation, the feed, the site map, and what crawlers may read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from ..accounts import ANONYMOUS
from ..checks import CHECKS
from ..errors import NotFound
from ..facts import taxonomy
from ..http import hub_of, iso
from ..index import search
from ..rights import Page
from . import queries
from .browse import query_of
from .methods import METHODS
from .pages import STATIC, code, page, rendered

router = APIRouter(include_in_schema=False, route_class=Page)

# File in `docs/` -> title, in the order of the contents.
GUIDES: Mapping[str, str] = {
    "start": "Five-minute guide",
    "find": "Find an adapter",
    "push": "Push an adapter",
    "load": "Load an adapter",
    "cli": "Command line",
    "checks": "Checks and pull requests",
    "api": "API",
}


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The contents, and the first guide."""
    return await _guide(request, "start")


@router.get("/docs/api")
async def api(request: Request) -> Response:
    """The hub's own API, from its OpenAPI description."""
    description = request.app.openapi()
    html = Markup(_markdown(_source("api"), hub_of(request).settings.public_url))
    return await page(request, "api.html", guides=GUIDES, current="api", groups=_operations(description), html=html)


@router.get("/docs/checks")
async def checks(request: Request) -> Response:
    """What is checked, with an anchor for each check."""
    html = Markup(_markdown(_source("checks"), hub_of(request).settings.public_url))
    return await page(request, "checks.html", guides=GUIDES, current="checks", rules=CHECKS, html=html)


@router.get("/docs/{name}")
async def guide(request: Request, name: str) -> Response:
    """One guide."""
    if name not in GUIDES:
        raise NotFound(f"There is no guide {name!r}. The guides are: {', '.join(GUIDES)}.")
    return await _guide(request, name)


async def _guide(request: Request, name: str) -> Response:
    html = Markup(_markdown(_source(name), hub_of(request).settings.public_url))
    return await page(request, "guide.html", guides=GUIDES, current=name, title=GUIDES[name], html=html)


@cache
def _source(name: str) -> str:
    return (resources.files(__package__) / "docs" / f"{name}.md").read_text(encoding="utf-8")


@cache
def _markdown(text: str, endpoint: str) -> str:
    """A guide as HTML, with this hub's address in its examples; the guides are our own, so nothing is filtered."""
    highlighter = MarkdownIt(
        "commonmark", {"highlight": lambda source, language, _: str(code(source, language or "text"))}
    )
    html = str(highlighter.enable("table").render(text.replace("{{endpoint}}", endpoint)))
    html = re.sub(r"<(pre|table)>", r'<\1 tabindex="0">', html)  # so that keys can scroll it
    return re.sub(r"<h2>(.*?)</h2>", _heading, html)


def _heading(match: re.Match[str]) -> str:
    anchor = re.sub(r"[^a-z0-9]+", "-", re.sub("<[^>]*>", "", match[1]).lower()).strip("-")
    return (
        f'<h2 id="{anchor}"><a class="anchor" href="#{anchor}" aria-label="Link to this section">#</a>{match[1]}</h2>'
    )


def _inline(text: str) -> Markup:
    """A sentence with `code` in it."""
    return Markup(MarkdownIt("commonmark", {"html": False}).renderInline(text))


def _operations(description: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Operations by the first part of their path behind `/api/v1`."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in description["paths"].items():
        if not path.startswith("/api/v1"):
            continue
        group = path.removeprefix("/api/v1/").partition("/")[0]
        for method, operation in methods.items():
            parameters = [item["name"] for item in operation.get("parameters", ()) if item["in"] == "query"]
            text = operation.get("description") or operation.get("summary") or ""
            groups.setdefault(group, []).append(
                {
                    "method": method.upper(),
                    "path": path,
                    "text": _inline(text.split("\n\n")[0]),
                    "parameters": parameters,
                }
            )
    return dict(sorted(groups.items()))


# ---- for machines ---------------------------------------------------------------------------------------------------


@router.get("/atom.xml")
async def feed(request: Request) -> Response:
    """The public adapters that changed last, of all or of those that pass the filters of a list, as an Atom feed."""
    asked = replace(query_of(request.query_params), sort="updated", cursor=None, limit=50)
    async with hub_of(request).db.read() as conn:
        rows = (await search.query(conn, asked, ANONYMOUS, facets=False)).rows
    chosen = urlencode([item for item in request.query_params.multi_items() if item[1]])
    return await _xml(request, "atom.xml", "application/atom+xml", rows=rows, iso=iso, query=chosen)


@router.get("/sitemap.xml")
async def sitemap(request: Request) -> Response:
    """All public pages that crawlers should know."""
    async with hub_of(request).db.read() as conn:
        known = await taxonomy.read(conn)
        rows = await queries.newest(conn, 40_000)
    fixed = ["", "adapters", "explore/text_task", "explore/text_lang", "architectures", *(f"docs/{g}" for g in GUIDES)]
    fixed += [f"architectures/{name}" for name in METHODS]
    fixed += [f"explore/{task}/{subtask}" for task, subtask in known.subtasks]
    return await _xml(request, "sitemap.xml", "application/xml", fixed=fixed, rows=rows, iso=iso)


async def _xml(request: Request, template: str, kind: str, **context: Any) -> Response:
    site = hub_of(request).settings
    text = await rendered(template, site=site, **context)
    return Response(text, media_type=kind, headers={"Cache-Control": "public, max-age=600"})


@router.get("/robots.txt")
async def robots(request: Request) -> Response:
    """What crawlers may read."""
    lines = ("User-agent: *", "Disallow: /*/resolve/", "Disallow: /api/", "Disallow: /settings/")
    return PlainTextResponse("\n".join((*lines, f"Sitemap: {hub_of(request).url('sitemap.xml')}", "")))


@router.get("/favicon.ico")
async def favicon() -> Response:
    """The icon, for browsers that do not look into the page."""
    return FileResponse(STATIC / "favicon.svg", media_type="image/svg+xml")
