"""The web site: pages from templates, which work without JavaScript and without any other host."""

from starlette.staticfiles import StaticFiles

from . import admin, browse, collections, discussions, guides, interest, models, people, repo, upload
from .pages import STATIC

__all__ = ["routes", "static"]

static = StaticFiles(directory=STATIC)
# `/{namespace}` and `/{namespace}/{name}` take what nobody before them takes.
_PARTS = (guides, browse, models, interest, collections, admin, upload, discussions, people, repo)
routes = [route for part in _PARTS for route in part.router.routes]
