"""The index in the forms of the old hub, for clients that still read `dist/v2`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter
from starlette.requests import Request

from ..db import schema
from ..http import hub_of

__all__ = ["router"]

router = APIRouter(prefix="/dist/v2", include_in_schema=False)


@router.get("/architectures.json")
async def architectures(request: Request) -> dict[str, Any]:
    """Name of each architecture to its config."""
    async with hub_of(request).db.read() as conn:
        rows = await conn.execute(sa.select(schema.architecture.c.name, schema.architecture.c.config))
        return dict(rows.all())
