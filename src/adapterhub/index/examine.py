"""A commit's record and checks, with what they must know of the rest of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import checks, names, quotas
from ..checks import CheckContext
from ..db import schema
from ..facts import taxonomy
from .derive import derive
from .record import Record

if TYPE_CHECKING:
    from ..hub import Hub
    from ..repos.files import RepoFiles
    from ..repos.repos import Repo

__all__ = ["context_of", "examine"]


async def examine(hub: Hub, repo: Repo, files: RepoFiles) -> Record:
    """What the files of a commit are, and what the checks say of them."""
    async with hub.db.read() as conn:
        known = await taxonomy.read(conn)
        record = await derive(files, known)
        context = await context_of(hub, conn, repo, known, list(record.dependencies))
    record.checks = await checks.run(files, context)
    return record


async def context_of(
    hub: Hub, conn: AsyncConnection, repo: Repo | None, known: taxonomy.Taxonomy, wanted: Sequence[str] = ()
) -> CheckContext:
    """What the checks must know of the rest of the hub.

    Args:
        repo: the repository that is checked, if there is one yet.
        wanted: names of repositories that it depends on.
    """
    tasks: dict[str, list[str]] = {task: [] for task in known.tasks}
    for task, subtask in known.subtasks:
        tasks.setdefault(task, []).append(subtask)
    keys = [name.lower().removeprefix("@") for name in wanted]
    query = sa.select(schema.repo.c.key).where(schema.repo.c.key.in_(keys))
    legacy = sa.select(schema.adapter.c.legacy_id).where(schema.adapter.c.legacy_id.in_(wanted))
    present = {*(await conn.execute(query)).scalars(), *(await conn.execute(legacy)).scalars()}
    usage = await quotas.usage(hub, conn, repo.owner_id) if repo else None
    return CheckContext(
        tasks=tasks,
        metrics={name: limits for name, (_, _, limits) in taxonomy.METRICS.items()},
        known_repos=present,
        similar_names=await _similar(conn, repo) if repo else (),
        used_bytes=usage.used if usage else 0,
        quota=usage.quota if usage else None,
    )


async def _similar(conn: AsyncConnection, repo: Repo) -> list[str]:
    """Repositories of other namespaces whose names look like this one's."""
    query = sa.select(schema.repo.c.namespace, schema.repo.c.name).where(
        schema.repo.c.name_key == names.key(repo.name),
        schema.repo.c.owner_id != repo.owner_id,
        sa.func.lower(schema.repo.c.name) != repo.name.lower(),
        sa.not_(schema.repo.c.private),
    )
    return [f"{namespace}/{name}" for namespace, name in (await conn.execute(query.limit(5)))]
