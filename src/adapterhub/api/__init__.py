"""The hub's own API: adapters by what they are for. It is described in `/openapi.json`."""

from fastapi import APIRouter

from . import accounts, adapters, checking, places, yanks
from .shared import ERRORS

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", responses=ERRORS)
for part in (places, adapters, yanks, checking, accounts):
    router.include_router(part.router)
