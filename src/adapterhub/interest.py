"""What people like and watch, and what is used and liked most just now."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from . import accounts
from .db import schema
from .db.engine import insert_missing
from .db.schema import now
from .errors import BadRequest, Conflict
from .facts.taxonomy import Taxonomy
from .repos.repos import Repo

__all__ = [
    "KINDS",
    "LIKE",
    "is_liked",
    "is_watched",
    "like",
    "liked_by",
    "trend",
    "unlike",
    "unwatch",
    "watch",
    "watched_by",
]

KINDS = ("task", "owner")  # what may be watched: a task or a language, a user or an organisation
LIKE = 10  # downloads that a like is worth
_DAYS = 7
_MOST = 200  # that one account may watch

_liking, _watch = schema.liking.c, schema.watch.c


# ---- likes ----------------------------------------------------------------------------------------------------------


async def like(conn: AsyncConnection, account_id: int, repo: Repo) -> None:
    """Notes that somebody likes a repository; once is enough."""
    row = {"account_id": account_id, "repo_id": repo.id, "created": now()}
    await insert_missing(conn, schema.liking, [row])
    await _count(conn, repo)


async def unlike(conn: AsyncConnection, account_id: int, repo: Repo) -> None:
    """Takes a like back, if there is one."""
    own = (_liking.account_id == account_id, _liking.repo_id == repo.id)
    await conn.execute(sa.delete(schema.liking).where(*own))
    await _count(conn, repo)


async def _count(conn: AsyncConnection, repo: Repo) -> None:
    likes = sa.select(sa.func.count()).select_from(schema.liking).where(_liking.repo_id == repo.id).scalar_subquery()
    await conn.execute(sa.update(schema.repo).where(schema.repo.c.id == repo.id).values(likes=likes))


async def is_liked(conn: AsyncConnection, account_id: int | None, repo: Repo) -> bool:
    """Whether somebody likes a repository."""
    own = (_liking.account_id == account_id, _liking.repo_id == repo.id)
    return (await conn.execute(sa.select(_liking.repo_id).where(*own))).first() is not None


async def liked_by(conn: AsyncConnection, account_id: int) -> Sequence[sa.RowMapping]:
    """The public repositories that somebody likes, the newest like first: `full_name` and `created`."""
    full_name = (schema.repo.c.namespace + "/" + schema.repo.c.name).label("full_name")
    query = (
        sa.select(full_name, _liking.created)
        .join(schema.repo, schema.repo.c.id == _liking.repo_id)
        .where(_liking.account_id == account_id, sa.not_(schema.repo.c.private))
        .order_by(_liking.created.desc(), _liking.repo_id.desc())
    )
    return (await conn.execute(query.limit(1000))).mappings().all()


async def trend(conn: AsyncConnection) -> None:
    """Sets what of each repository is new: the downloads of the last week, and ten for each like of that week."""
    since = now() - timedelta(days=_DAYS)
    day, liked, repo = schema.download_day.c, _liking, schema.repo
    used = sa.select(sa.func.coalesce(sa.func.sum(day.count), 0)).where(
        day.repo_id == repo.c.id, day.day > since.date()
    )
    likes = (
        sa.select(sa.func.count()).select_from(schema.liking).where(liked.repo_id == repo.c.id, liked.created > since)
    )
    fresh = used.scalar_subquery() + LIKE * likes.scalar_subquery()
    await conn.execute(sa.update(repo).where(repo.c.trending != fresh).values(trending=fresh))
    known = sa.select(repo.c.trending).where(repo.c.id == schema.adapter.c.repo_id).scalar_subquery()
    await conn.execute(sa.update(schema.adapter).where(schema.adapter.c.trending != known).values(trending=known))


# ---- watching -------------------------------------------------------------------------------------------------------


async def watch(conn: AsyncConnection, account_id: int, kind: str, target: str) -> None:
    """Notes that somebody wants to see what comes new to a task, a language, a user or an organisation.

    Raises:
        BadRequest: there is no such kind or task.
        NotFound: there is no such account.
        Conflict: they watch very much already.
    """
    if kind not in KINDS:
        raise BadRequest(f"kind={kind[:40]!r} is not one of {', '.join(KINDS)}.")
    if kind == "owner":
        target = (await accounts.find_account(conn, target))["name"]
    elif target not in Taxonomy.packaged().tasks:
        raise BadRequest(f"There is no task or language {target[:40]!r}. They are listed at /explore.")
    if len(await watched_by(conn, account_id)) >= _MOST:
        raise Conflict(f"You watch {_MOST} things already. Stop watching one of them at /watching.")
    row = {"account_id": account_id, "kind": kind, "target": target, "created": now()}
    await insert_missing(conn, schema.watch, [row])


async def unwatch(conn: AsyncConnection, account_id: int, kind: str, target: str) -> None:
    """Stops watching, if they do."""
    own = (_watch.account_id == account_id, _watch.kind == kind, _watch.target == target)
    await conn.execute(sa.delete(schema.watch).where(*own))


async def watched_by(conn: AsyncConnection, account_id: int) -> Sequence[tuple[str, str]]:
    """What somebody watches: kind and target, in alphabetical order."""
    query = sa.select(_watch.kind, _watch.target).where(_watch.account_id == account_id)
    return [(kind, target) for kind, target in await conn.execute(query.order_by(_watch.kind, _watch.target))]


async def is_watched(conn: AsyncConnection, account_id: int | None, kind: str, target: str) -> bool:
    """Whether somebody watches something."""
    own = (_watch.account_id == account_id, _watch.kind == kind, _watch.target == target)
    return (await conn.execute(sa.select(_watch.target).where(*own))).first() is not None
