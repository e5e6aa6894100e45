"""What the hub is compared with: the least that a server can do for the same answer."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route


async def _file(request: Request) -> Response:
    return FileResponse(os.environ["BENCH_FILE"])


async def _sink(request: Request) -> Response:
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=os.environ["BENCH_FOLDER"]) as file:
        async for chunk in request.stream():
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Response(digest.hexdigest())


def plain() -> Starlette:
    """Sends a file with `FileResponse`; hashes, writes and flushes what it is sent."""
    return Starlette(routes=[Route("/file", _file), Route("/sink", _sink, methods=["PUT"])])


def json_api() -> FastAPI:
    """Answers with one JSON object."""
    import json

    app = FastAPI()
    answer: dict[str, Any] = json.loads(Path(os.environ["BENCH_JSON"]).read_text())

    @app.get("/api/models/{namespace}/{name}")
    async def model(namespace: str, name: str) -> dict[str, Any]:
        return answer

    return app
