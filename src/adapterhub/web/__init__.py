"""The web site: pages from templates, which work without JavaScript and without any other host."""

from fastapi import APIRouter
from starlette.staticfiles import StaticFiles

from . import admin, browse, discussions, guides, people, repo, upload
from .pages import STATIC

__all__ = ["router", "static"]

static = StaticFiles(directory=STATIC)
router = APIRouter()
# `/{namespace}` and `/{namespace}/{name}` take what nobody before them takes.
for part in (guides, browse, admin, upload, discussions, people, repo):
    router.include_router(part.router)
