"""What the checks say: of a revision, and of files before they are uploaded."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from starlette.requests import Request

from .. import checks, names
from ..content.safetensors import InvalidSafetensors, parse_header
from ..db import schema
from ..errors import EntryNotFound, HubError, RepoNotFound, TooLarge
from ..facts import taxonomy
from ..http import hub_of, unquote
from ..index.derive import derive
from ..index.examine import context_of, examine
from ..repos import commits, repos
from ..repos.files import Entry, Manifest, RepoFiles
from ..storage.git import blob_oid
from .models import CheckReport, CheckRequest, DryFile
from .shared import Caller, Name, Text, part

__all__ = ["router"]

router = part("checks")


@router.get("/checks/{namespace}/{name}/{rev}", response_model=CheckReport)
async def report(request: Request, caller: Caller, namespace: Name, name: Name, rev: Text) -> Any:
    """What the checks say of a revision; a `/` in its name is sent as `%2F`."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        repo = await repos.find(conn, caller, f"{namespace}/{name}")
        head = await commits.resolve(conn, repo, unquote(rev))
        known = schema.check_report.c
        query = sa.select(known.checks).where(known.repo_id == repo.id, known.oid == head.oid)
        found: Sequence[Mapping[str, Any]] | None = (await conn.execute(query)).scalar()
        manifest = await commits.manifest_of(conn, head.tree)
    if found is None:
        found = (await examine(hub, repo, RepoFiles(hub, manifest))).checks
    return _report(head.oid, found)


@router.post("/check", response_model=CheckReport)
async def dry_run(request: Request, caller: Caller, body: CheckRequest) -> Any:
    """What the checks will say of files, before they are uploaded; nothing is stored.

    Send all files of the repository: of cards and configs the `content`, of safetensors files the `header`, of others
    the path and the size.
    """
    hub = hub_of(request)
    sent = {names.check_path(file.path): file for file in body.files}
    files = _DryFiles(sent, await asyncio.to_thread(_headers, sent))
    async with hub.db.read() as conn:
        repo = None
        with suppress(RepoNotFound):  # It may have to be made yet.
            repo = await repos.find(conn, caller, body.repo) if body.repo else None
        known = await taxonomy.read(conn)
        context = await context_of(hub, conn, repo, known, await _dependencies(files, known))
    return _report(None, await checks.run(files, context))


def _report(revision: str | None, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    levels = [check["level"] for check in found]
    return {
        "revision": revision,
        "errors": levels.count("error"),
        "warnings": levels.count("warning"),
        "checks": found,
    }


async def _dependencies(files: _DryFiles, known: taxonomy.Taxonomy) -> list[str]:
    try:
        return list((await derive(files, known)).dependencies)
    except HubError:
        return []  # A card or a config was not sent; the checks tell of that.


@dataclass(frozen=True)
class _DryFiles:
    """Files of which only texts and headers are here."""

    sent: Mapping[str, DryFile]
    headers: Mapping[str, dict[str, Any]]

    @property
    def manifest(self) -> Manifest:
        return {path: _entry(file) for path, file in sorted(self.sent.items())}

    async def read(self, path: str, limit: int = 2 << 20) -> bytes:
        """The bytes of a text.

        Raises:
            EntryNotFound: it was not sent.
            TooLarge: it has more than `limit` bytes.
        """
        file = self.sent.get(path)
        if file is None or file.content is None:
            raise EntryNotFound(f"The content of {path} was not sent.")
        data = file.content.encode("utf-8", "replace")
        if len(data) > limit:
            raise TooLarge(f"{path} has {len(data)} bytes; at most {limit} are read here.")
        return data

    async def header(self, path: str) -> dict[str, Any] | None:
        """The tensors of a safetensors file; None where its header was not sent or is wrong."""
        return self.headers.get(path)


def _headers(sent: Mapping[str, DryFile]) -> dict[str, dict[str, Any]]:
    """The tensors of each file whose header was sent and is right."""
    found = {}
    for path, file in sent.items():
        text = (file.header or "").encode("utf-8", "replace")
        with suppress(InvalidSafetensors):
            tensors = parse_header(len(text).to_bytes(8, "little") + text, file.size)
            found[path] = {name: [tensor.dtype, list(tensor.shape)] for name, tensor in tensors.items()}
    return found


def _entry(file: DryFile) -> Entry:
    data = (file.content or "").encode("utf-8", "replace")
    return Entry(file.path, hashlib.sha256(data).hexdigest(), blob_oid(data), file.size, lfs=file.content is None)
