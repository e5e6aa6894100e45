"""What pages show and no other part of the hub asks the database for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..accounts import Principal
from ..db import schema
from ..db.counts import Counts
from ..db.schema import now
from ..index.search import visible_to
from ..repos.repos import Repo

__all__ = [
    "accounts",
    "adapter_of",
    "audit",
    "dependencies",
    "dependents",
    "downloads_by_day",
    "evaluations",
    "jobs",
    "members",
    "newest",
    "numbers",
    "open_discussions",
    "organizations_of",
    "repos_of",
    "report",
    "yank_of",
]

Row = sa.RowMapping
_adapter = schema.adapter.c


async def numbers(conn: AsyncConnection, places: Mapping[str, Mapping[str, Any]], kept: Counts) -> Mapping[str, int]:
    """How many adapters, tasks, languages and base models are public, and of how many adapters only the card is here.

    Args:
        places: what `search.tree` counts.
    """
    row = await kept.get(conn, "numbers", _numbers)
    return {**row, "tasks": len(places["text_task"]), "languages": len(places["text_lang"])}


async def _numbers(conn: AsyncConnection) -> Row:
    models, bare = sa.func.count(_adapter.base_model.distinct()), sa.func.count().filter(_adapter.bytes == 0)
    query = sa.select(sa.func.count().label("adapters"), models.label("models"), bare.label("bare"))
    query = query.where(_adapter.visible)
    return (await conn.execute(query)).mappings().one()


async def newest(conn: AsyncConnection, limit: int = 50) -> Sequence[Row]:
    """Public adapters for the feed: name, title, summary and when they last changed."""
    repo = schema.repo.c
    query = (
        sa.select(repo.namespace, repo.name, repo.uid, _adapter.title, _adapter.summary, _adapter.updated)
        .join(schema.repo, repo.id == _adapter.repo_id)
        .where(_adapter.visible)
        .order_by(_adapter.updated.desc())
    )
    return (await conn.execute(query.limit(limit))).mappings().all()


async def adapter_of(conn: AsyncConnection, repo: Repo) -> Row | None:
    """What the index says of a repository."""
    query = sa.select(schema.adapter).where(_adapter.repo_id == repo.id)
    return (await conn.execute(query)).mappings().one_or_none()


async def evaluations(conn: AsyncConnection, repo: Repo) -> Sequence[Row]:
    """The numbers that a repository's card reports."""
    table = schema.evaluation.c
    query = sa.select(schema.evaluation).where(table.repo_id == repo.id)
    order = (table.task, table.subtask, table.dataset, table.split, table.metric)
    return (await conn.execute(query.order_by(*order))).mappings().all()


async def dependencies(conn: AsyncConnection, repo: Repo) -> Sequence[Row]:
    """What a repository's adapter is to be used with."""
    query = sa.select(schema.dependency).where(schema.dependency.c.repo_id == repo.id)
    return (await conn.execute(query.order_by(schema.dependency.c.target))).mappings().all()


async def dependents(conn: AsyncConnection, principal: Principal, repo: Repo, legacy_id: str | None) -> list[str]:
    """Names of the repositories that name this one as a dependency."""
    targets = [repo.full_name, f"@{repo.full_name}", *([legacy_id] if legacy_id else [])]
    query = (
        sa.select(schema.repo.c.namespace, schema.repo.c.name)
        .join(schema.dependency, schema.dependency.c.repo_id == schema.repo.c.id)
        .join(schema.adapter, _adapter.repo_id == schema.repo.c.id)
        .where(schema.dependency.c.target.in_(targets), visible_to(principal))
        .order_by(schema.repo.c.downloads.desc())
    )
    return [f"{namespace}/{name}" for namespace, name in (await conn.execute(query.limit(20)))]


async def downloads_by_day(conn: AsyncConnection, repo: Repo, days: int = 30) -> list[int]:
    """Downloads of each of the last days, today last."""
    today = now().date()
    table = schema.download_day.c
    query = sa.select(table.day, table.count).where(table.repo_id == repo.id, table.day > today - timedelta(days=days))
    counts = dict((await conn.execute(query)).all())
    return [counts.get(today - timedelta(days=back), 0) for back in reversed(range(days))]


async def yank_of(conn: AsyncConnection, repo: Repo, oid: str) -> str | None:
    """Why a commit was yanked, if it was."""
    same = (schema.yank.c.repo_id == repo.id, schema.yank.c.oid == oid)
    reason: str | None = (await conn.execute(sa.select(schema.yank.c.reason).where(*same))).scalar()
    return reason


async def report(conn: AsyncConnection, repo: Repo, oid: str) -> list[dict[str, Any]] | None:
    """What the checks said of a commit."""
    same = (schema.check_report.c.repo_id == repo.id, schema.check_report.c.oid == oid)
    checks: list[dict[str, Any]] | None = (
        await conn.execute(sa.select(schema.check_report.c.checks).where(*same))
    ).scalar()
    return checks


async def open_discussions(conn: AsyncConnection, repo: Repo) -> int:
    """How many discussions and pull requests are open."""
    table = schema.discussion.c
    query = sa.select(sa.func.count()).where(table.repo_id == repo.id, table.status.in_(("open", "draft")))
    return int((await conn.execute(query)).scalar_one())


async def repos_of(conn: AsyncConnection, principal: Principal, namespace: str) -> Sequence[Row]:
    """Repositories of a namespace that the caller may see but no list of adapters shows."""
    table = schema.repo.c
    mine = [table.namespace == namespace]
    if not principal.may_read(namespace, namespace):
        mine.append(sa.not_(table.private))
    indexed = sa.select(_adapter.repo_id).where(_adapter.library != "other", visible_to(principal))
    query = sa.select(schema.repo).where(*mine, table.id.not_in(indexed)).order_by(table.updated.desc())
    return (await conn.execute(query.limit(200))).mappings().all()


# ---- people ---------------------------------------------------------------------------------------------------------


async def members(conn: AsyncConnection, org_id: int) -> Sequence[Row]:
    """Members of an organisation: name, full name and role."""
    query = (
        sa.select(schema.account.c.id, schema.account.c.name, schema.account.c.fullname, schema.membership.c.role)
        .join(schema.membership, schema.membership.c.user_id == schema.account.c.id)
        .where(schema.membership.c.org_id == org_id)
    )
    return (await conn.execute(query.order_by(schema.account.c.name))).mappings().all()


async def organizations_of(conn: AsyncConnection, user_id: int) -> Sequence[Row]:
    """Organisations of a user, with their role there."""
    query = (
        sa.select(schema.account.c.name, schema.membership.c.role)
        .join(schema.membership, schema.membership.c.org_id == schema.account.c.id)
        .where(schema.membership.c.user_id == user_id)
    )
    return (await conn.execute(query.order_by(schema.account.c.name))).mappings().all()


# ---- running the hub ------------------------------------------------------------------------------------------------


async def accounts(conn: AsyncConnection, words: str = "", limit: int = 200) -> Sequence[Row]:
    """Accounts whose names hold some text, with the bytes of their repositories."""
    table = schema.account.c
    held = (
        sa.select(sa.func.coalesce(sa.func.sum(schema.repo.c.bytes), 0))
        .where(schema.repo.c.owner_id == table.id)
        .scalar_subquery()
    )
    query = sa.select(schema.account, held.label("bytes")).order_by(table.name)
    if words.strip():
        query = query.where(sa.func.lower(table.name).contains(words.strip().lower(), autoescape=True))
    return (await conn.execute(query.limit(limit))).mappings().all()


async def audit(conn: AsyncConnection, limit: int = 100, before: int | None = None) -> Sequence[Row]:
    """Lines of the audit log, the newest first."""
    query = sa.select(schema.audit).order_by(schema.audit.c.id.desc())
    if before is not None:
        query = query.where(schema.audit.c.id < before)
    return (await conn.execute(query.limit(limit))).mappings().all()


async def jobs(conn: AsyncConnection) -> Sequence[Row]:
    """Timed jobs: who ran each of them last, and until when nobody else does."""
    query = sa.select(schema.lease).where(schema.lease.c.name != "setup").order_by(schema.lease.c.name)
    return (await conn.execute(query)).mappings().all()
