"""Names that mean something already: a new account must neither take one over nor look like one."""

from __future__ import annotations

import re

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from . import names
from .db import schema
from .errors import Conflict

__all__ = ["require_unclaimed"]

_LISTED = 5


async def require_unclaimed(conn: AsyncConnection, name: str) -> None:
    """Refuses a name for an account that other accounts, namespaces of the hub behind this one, or tasks look like.

    A task is claimed by the first public adapter for it, also one that its author made up: `task/subtask` leads there,
    and would lead to a repository of that id once there is an account of that name.

    Raises:
        Conflict: it is claimed; the message says by what.
    """
    wanted = names.skeleton(name)
    # Only letters that nothing looks like are the same in all such names.
    pattern = re.sub(r"[^fhjkpuxy]+", "%", names.key(name))
    like = sa.select(schema.account.c.name).where(schema.account.c.name_key.like(f"%{pattern}%"))
    accounts = (await conn.execute(like)).scalars()
    if similar := [known for known in accounts if names.skeleton(known) == wanted]:
        raise Conflict(f"{name!r} is taken or looks like {', '.join(map(repr, similar))}. Choose another name.")
    elsewhere = schema.upstream_namespace.c
    known_elsewhere = sa.select(elsewhere.name, elsewhere.repo).where(elsewhere.name_key.like(f"%{pattern}%"))
    for known, repo in (await conn.execute(known_elsewhere)).all():
        if names.skeleton(known) == wanted:
            raise Conflict(
                f"{name!r} looks like {known!r}, whose repository {repo} comes from the hub behind this one."
            )
    adapter = schema.adapter.c
    named = sa.select(adapter.task).where(adapter.visible, adapter.task.not_in(sa.select(schema.task.c.id))).distinct()
    claimed = [task for task in (await conn.execute(named)).scalars() if names.skeleton(task) == wanted]
    if claimed:
        query = sa.select(schema.repo.c.key).join(schema.adapter, adapter.repo_id == schema.repo.c.id)
        rows = (await conn.execute(query.where(adapter.visible, adapter.task.in_(claimed)).limit(_LISTED))).scalars()
        tasks = ", ".join(map(repr, sorted(claimed)))
        raise Conflict(
            f"{name!r} is, or looks like, the task {tasks}, by which adapters are found: {', '.join(rows)}. Choose "
            "another name, or ask their authors for another task."
        )
