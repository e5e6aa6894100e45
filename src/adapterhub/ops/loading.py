"""What only torch can tell: newly uploaded adapters are loaded once, each in a limited process of its own."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ..checks import Check
from ..checks.load import ID, load_check
from ..db import schema
from ..index.derive import ADAPTER_WEIGHTS
from ..repos import commits, refs, repos
from ..repos.files import Manifest
from ..settings import GiB

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["check_loading"]

_FILES = ("adapter_config.json", *ADAPTER_WEIGHTS)
_LARGEST = 2 * GiB


async def check_loading(hub: Hub, *, most: int = 5) -> int:
    """Loads adapters at the heads of default branches and pull requests that were not loaded yet; returns their number.

    What it finds is added to the checks of the commit: it is shown with them, and keeps a pull request from being
    merged as they do. Without torch and `adapters` on this machine, or with `load_checks` off, nothing is done.

    Args:
        most: so many at one time.
    """
    if not hub.settings.load_checks or not all(map(importlib.util.find_spec, ("torch", "adapters"))):
        return 0
    report, ref = schema.check_report.c, schema.ref.c
    heads = sa.or_(ref.name == f"{refs.HEADS}main", ref.name.startswith(refs.PULLS))
    query = (
        sa.select(report.repo_id, report.oid)
        .join(schema.ref, sa.and_(ref.repo_id == report.repo_id, ref.oid == report.oid, heads))
        .where(sa.cast(report.checks, sa.Text).not_like(f'%"{ID}"%'))
        .distinct()
        .order_by(report.repo_id)
    )
    async with hub.db.read() as conn:
        due = (await conn.execute(query.limit(most))).all()
    for repo_id, oid in due:
        found = await _load(hub, repo_id, oid)
        await _add(hub, repo_id, oid, found)
    return len(due)


async def _load(hub: Hub, repo_id: int, oid: str) -> Check:
    async with hub.db.read() as conn:
        repo = await repos.by_id(conn, repo_id)
        manifest = await commits.manifest_of(conn, (await commits.find(conn, repo, oid)).tree)
    wanted = [manifest[path] for path in _FILES if path in manifest]
    if len(wanted) < 2:
        return Check(ID, "ok", "Loading was not tried: there is no adapter with weights.")
    if sum(entry.size for entry in wanted) > _LARGEST:
        return Check(ID, "ok", f"Loading was not tried: the files have more than {_LARGEST} bytes.")
    with tempfile.TemporaryDirectory(prefix="load-", dir=hub.scratch) as folder:
        await _write(hub, manifest, Path(folder))
        return await load_check(Path(folder))


async def _write(hub: Hub, manifest: Manifest, folder: Path) -> None:
    for path in _FILES:
        if path in manifest:
            with open(folder / path, "wb") as file:
                async for chunk in hub.blobs.open(manifest[path].sha256):
                    file.write(chunk)


async def _add(hub: Hub, repo_id: int, oid: str, found: Check) -> None:
    same = (schema.check_report.c.repo_id == repo_id, schema.check_report.c.oid == oid)
    async with hub.db.write() as conn:
        query = sa.select(schema.check_report.c.checks).where(*same).with_for_update()
        known = (await conn.execute(query)).scalar()
        if known is not None:
            checks = [*(check for check in known if check["id"] != ID), found.shown()]
            await conn.execute(sa.update(schema.check_report).where(*same).values(checks=checks))
