"""The protocol of the Hugging Face hub, as its client speaks it: one file per group of calls."""

from fastapi import APIRouter

from . import accounts, commits, discussions, files, lfs, models, refs, repos

__all__ = ["router"]

router = APIRouter(include_in_schema=False)
for part in (accounts, repos, models, refs, commits, lfs, discussions, files):
    router.include_router(part.router)
