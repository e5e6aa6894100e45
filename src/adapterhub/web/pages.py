"""What every page needs: templates, the visitor, and forms that did not come from elsewhere."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers import TextLexer, get_lexer_by_name  # type: ignore[import-untyped]
from pygments.util import ClassNotFound  # type: ignore[import-untyped]
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ..http import check_csrf, check_origin, hub_of, principal_of
from . import formats

__all__ = ["STATIC", "code", "form_of", "page", "redirect", "rendered", "unified", "with_query"]

STATIC = Path(__file__).parent / "static"


async def page(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    """A page of the site.

    Args:
        template: file in `templates/`.
        context: what it shows, besides `me` (the visitor), `site` (the settings), `here` (the path) and `theme`.
    """
    hub, me = hub_of(request), await principal_of(request)
    theme = request.cookies.get("theme")
    everywhere = {
        "me": me,
        "site": hub.settings,
        "here": request.url.path,
        "query": request.query_params,
        "theme": theme if theme in ("light", "dark") else None,
    }
    html = await rendered(template, **everywhere, **context)
    return HTMLResponse(html, status, headers={"Cache-Control": "private, no-cache", "Vary": "Cookie"})


async def rendered(template: str, **context: Any) -> str:
    """The text of a template, made beside the event loop: some pages are long."""
    return await asyncio.to_thread(environment().get_template(template).render, **context)


def redirect(url: str, status: int = 303) -> Response:
    """Leads to another page of this site."""
    return RedirectResponse(url, status)


async def form_of(request: Request, **limits: Any) -> FormData:
    """The fields of a form that this site has shown to this visitor.

    Args:
        limits: as for `Request.form`.

    Raises:
        Forbidden: it was sent from elsewhere.
    """
    check_origin(request)
    fields = await request.form(**limits)
    check_csrf(await principal_of(request), str(fields.get("csrf", "")))
    return fields


# ---- templates ------------------------------------------------------------------------------------------------------


@cache
def environment() -> Environment:
    """The templates, with everything escaped that is not marked as safe."""
    made = Environment(
        loader=PackageLoader("adapterhub.web"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    for name in formats.__all__:
        made.filters[name] = getattr(formats, name)
    made.filters["code"] = code
    made.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    made.globals.update(asset=asset, with_query=with_query)
    return made


@cache
def asset(name: str) -> str:
    """The address of a static file, which changes with its content."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


def with_query(query: Any, **changes: Any) -> str:
    """A query string with some values changed; None takes a value out."""
    kept = [(key, value) for key, value in query.multi_items() if key not in changes and value]
    return "?" + urlencode(kept + [(key, value) for key, value in changes.items() if value is not None])


def code(text: str, language: str = "") -> Markup:
    """Source code, highlighted."""
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        lexer = TextLexer()
    return Markup(highlight(text, lexer, HtmlFormatter(nowrap=True)))


def unified(before: str, after: str) -> list[tuple[str, str]]:
    """Lines of a difference, each with what it is: `plus`, `minus`, `at` or nothing."""
    kinds = {"+": "plus", "-": "minus", "@": "at"}
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=3))[2:]
    return [(kinds.get(line[:1], ""), line) for line in lines]
