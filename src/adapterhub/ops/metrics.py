"""Whether the hub lives, whether it is ready, and its figures for Prometheus."""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable

import prometheus_client as prometheus
import sqlalchemy as sa
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..db import schema
from ..errors import HubError
from ..http import hub_of
from ..hub import Hub
from ..rights import Guarded

__all__ = ["observe", "router"]

router = APIRouter(include_in_schema=False, route_class=Guarded)

_REGISTRY = prometheus.CollectorRegistry()
_REQUESTS = prometheus.Counter(
    "adapterhub_requests", "Requests answered.", ("kind", "method", "status"), registry=_REGISTRY
)
_SECONDS = prometheus.Histogram(
    "adapterhub_request_seconds",
    "Seconds until the last byte of an answer was sent.",
    ("kind",),
    registry=_REGISTRY,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"))


def observe(kind: str, method: str, status: int, seconds: float) -> None:
    """Notes a request; `kind` is a class of routes, such as `resolve`."""
    count, histogram = _figures(kind, method if method in _METHODS else "other", status // 100)
    count.inc()
    histogram.observe(seconds)


@functools.cache
def _figures(kind: str, method: str, hundreds: int) -> tuple[prometheus.Counter, prometheus.Histogram]:
    return _REQUESTS.labels(kind, method, f"{hundreds}xx"), _SECONDS.labels(kind)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Whether the database and the blobs answer: 200, or 503 with what is wrong."""
    hub = hub_of(request)
    state = {"database": await _tried(lambda: _ask(hub)), "blobs": await _tried(hub.blobs.check)}
    ready = all(value == "ok" for value in state.values())
    return JSONResponse({"ready": ready, **state}, 200 if ready else 503)


async def _ask(hub: Hub) -> None:
    async with hub.db.read() as conn:
        await conn.execute(sa.select(1))


async def _tried(check: Callable[[], Awaitable[None]]) -> str:
    try:
        await check()
    except HubError as error:
        return error.message
    except (sa.exc.SQLAlchemyError, OSError) as error:
        return f"does not answer ({type(error).__name__})"
    return "ok"


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The figures, in the text form that Prometheus reads."""
    counted = _REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client import multiprocess

        counted = prometheus.CollectorRegistry()
        multiprocess.MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
    text = prometheus.generate_latest(counted) + prometheus.generate_latest(await _stock(hub_of(request)))
    return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)


async def _stock(hub: Hub) -> prometheus.CollectorRegistry:
    """What the hub holds, asked from the database at this moment."""
    held = sa.select(sa.func.count()).select_from
    users = sa.select(sa.func.count()).where(schema.account.c.kind == "user")
    stored = sa.select(sa.func.coalesce(sa.func.sum(schema.blob.c.size), 0)).where(schema.blob.c.state != "missing")
    questions = {
        "users": ("Users.", users),
        "repositories": ("Repositories.", held(schema.repo)),
        "adapters": ("Repositories that hold an adapter.", held(schema.adapter)),
        "commits": ("Commits.", held(schema.commit)),
        "blobs": ("Blobs.", held(schema.blob)),
        "blob_bytes": ("Bytes of all blobs.", stored),
        "open_uploads": ("Uploads in parts that are not complete.", held(schema.upload)),
    }
    registry = prometheus.CollectorRegistry()
    async with hub.db.read() as conn:
        for name, (text, query) in questions.items():
            gauge = prometheus.Gauge(f"adapterhub_{name}", text, registry=registry, multiprocess_mode="mostrecent")
            gauge.set(float((await conn.execute(query)).scalar_one()))
    return registry
