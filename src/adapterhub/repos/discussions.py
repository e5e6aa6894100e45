"""Discussions of a repository: begun, found, answered, closed. A pull request is one that has commits."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..accounts import Principal
from ..db import schema
from ..db.engine import insert
from ..errors import BadRequest, Conflict, Forbidden, NotFound
from .repos import Repo

__all__ = ["begin", "comment", "comments", "find", "page", "require_participant", "set_status"]

_MAX_BODY = 64 * 1024
_MOST = 2**31 - 1  # what the column holds; no discussion has it


def require_participant(principal: Principal, repo: Repo) -> None:
    """Lets those pass who may talk about a repository that they see, and propose changes to it.

    Raises:
        Unauthorized: nobody is logged in.
        Forbidden: the token only reads, or is limited to other repositories.
    """
    principal.require_user()
    if principal.role != "write":
        raise Forbidden("This token may only read. Use one with role 'write'.")
    scope = {part.lower() for part in principal.scope}
    if scope and not scope & {repo.namespace.lower(), repo.full_name.lower()}:
        raise Forbidden(f"This token is limited to {', '.join(principal.scope)}. Use one for {repo.full_name}.")


async def begin(
    conn: AsyncConnection,
    repo: Repo,
    principal: Principal,
    title: str,
    description: str = "",
    *,
    is_pull: bool = False,
    base: str = "refs/heads/main",
    status: str = "open",
) -> int:
    """Begins a discussion or a pull request; returns its number.

    Raises:
        Unauthorized, Forbidden: as for `require_participant`.
        BadRequest: it has no title, or too long a text.
    """
    require_participant(principal, repo)
    title = title.strip()
    if not 1 <= len(title) <= 300:
        raise BadRequest("A discussion needs a title of 1 to 300 characters.")
    same = schema.discussion.c.repo_id == repo.id
    # Whoever counts next waits for the repository's row.
    await conn.execute(sa.select(schema.repo.c.id).where(schema.repo.c.id == repo.id).with_for_update())
    number = 1 + ((await conn.execute(sa.select(sa.func.max(schema.discussion.c.num)).where(same))).scalar() or 0)
    values = {"title": title, "status": status, "author": principal.name, "base": base, "is_pull": is_pull}
    await conn.execute(sa.insert(schema.discussion).values(repo_id=repo.id, num=number, **values))
    if description.strip():
        await comment(conn, repo, number, principal, description)
    return number


async def find(conn: AsyncConnection, repo: Repo, number: int) -> sa.RowMapping:
    """A discussion.

    Raises:
        NotFound: there is none of that number.
    """
    same = (schema.discussion.c.repo_id == repo.id, schema.discussion.c.num == min(number, _MOST))
    row = (await conn.execute(sa.select(schema.discussion).where(*same))).mappings().one_or_none()
    if row is None:
        raise NotFound(f"{repo.full_name} has no discussion {number}.")
    return row


async def page(
    conn: AsyncConnection, repo: Repo, *, limit: int = 50, offset: int = 0
) -> tuple[Sequence[sa.RowMapping], int]:
    """A page of discussions, the newest first, and the number of all."""
    mine = schema.discussion.c.repo_id == repo.id
    query = sa.select(schema.discussion).where(mine).order_by(schema.discussion.c.num.desc())
    rows = (await conn.execute(query.limit(limit).offset(offset))).mappings().all()
    count = (await conn.execute(sa.select(sa.func.count()).select_from(schema.discussion).where(mine))).scalar_one()
    return rows, count


async def comments(conn: AsyncConnection, repo: Repo, number: int) -> Sequence[sa.RowMapping]:
    """What was said and done in a discussion, in order."""
    query = sa.select(schema.comment).where(schema.comment.c.repo_id == repo.id, schema.comment.c.num == number)
    return (await conn.execute(query.order_by(schema.comment.c.id))).mappings().all()


async def comment(
    conn: AsyncConnection, repo: Repo, number: int, principal: Principal, body: str, *, kind: str = "comment"
) -> int:
    """Adds a comment; returns its id.

    Raises:
        Unauthorized, Forbidden: as for `require_participant`.
        BadRequest: it is empty or longer than 64 KiB.
        NotFound: there is no such discussion.
    """
    require_participant(principal, repo)
    if not body.strip() or len(body) > _MAX_BODY:
        raise BadRequest(f"A comment needs 1 to {_MAX_BODY} characters.")
    await find(conn, repo, number)
    values = {"repo_id": repo.id, "num": number, "author": principal.name, "kind": kind, "body": body.strip()}
    return await insert(conn, schema.comment, **values)


async def set_status(conn: AsyncConnection, repo: Repo, number: int, principal: Principal, status: str) -> None:
    """Opens or closes a discussion.

    Raises:
        BadRequest: `status` is neither `open` nor `closed`.
        Conflict: it is merged.
        Unauthorized: nobody is logged in.
        Forbidden: the caller neither began it nor may write to the repository.
    """
    if status not in ("open", "closed"):
        raise BadRequest(f"status={status!r} is not one of open, closed.")
    require_participant(principal, repo)
    row = await find(conn, repo, number)
    if row["author"] != principal.name and not principal.may_write(repo.namespace, repo.full_name):
        raise Forbidden("Only its author and those who may write to the repository can open or close it.")
    if row["status"] == "merged":
        raise Conflict(f"Pull request {number} is merged; its status cannot change any more.")
    same = (schema.discussion.c.repo_id == repo.id, schema.discussion.c.num == number)
    await conn.execute(sa.update(schema.discussion).where(*same).values(status=status))
    await comment(conn, repo, number, principal, status, kind="status")
