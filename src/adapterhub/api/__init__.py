"""The hub's own API: adapters by what they are for. It is described in `/openapi.json`."""

from fastapi import APIRouter

from . import accounts, adapters, checking, collections, places, yanks
from .shared import ERRORS, PREFIX

__all__ = ["router"]

router = APIRouter(prefix=PREFIX, responses=ERRORS)
for part in (places, adapters, collections, yanks, checking, accounts):
    router.include_router(part.router)
