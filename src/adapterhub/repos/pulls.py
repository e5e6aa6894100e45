"""Discussions and pull requests: talk, compare, merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import accounts
from ..accounts import Principal
from ..db import schema
from ..db.engine import insert
from ..errors import BadRequest, Conflict, Forbidden, NotFound
from . import commits, refs
from .commits import Committed, Operation, Put, Remove
from .files import Entry, Manifest
from .repos import Repo

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["Change", "Comparison", "comment", "comments", "compare", "discussions", "find", "merge", "open_discussion"]
__all__ += ["open_pull", "require_participant", "set_status"]

_MAX_BODY = 64 * 1024


@dataclass(frozen=True)
class Change:
    """What a pull request does to a file: one of the two is None where it is added or removed."""

    path: str
    before: Entry | None
    after: Entry | None


@dataclass(frozen=True)
class Comparison:
    """A pull request against its base.

    Attributes:
        base: head of the branch it would be merged into.
        head: its own newest commit.
        changes: what it changes since it left the branch.
        conflicts: files that both have changed since, in different ways.
        checks: what the checks say of its newest commit.
    """

    base: str
    head: str
    changes: Sequence[Change]
    conflicts: Sequence[str]
    checks: Sequence[dict[str, Any]]


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


async def open_discussion(
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


async def open_pull(conn: AsyncConnection, repo: Repo, principal: Principal, title: str, description: str = "") -> int:
    """An empty pull request against the default branch, a draft until it is opened; commits go to `refs/pr/<number>`.

    Raises:
        Unauthorized, Forbidden, BadRequest: as for `open_discussion`.
    """
    base = refs.HEADS + repo.default_branch
    number = await open_discussion(conn, repo, principal, title, description, is_pull=True, base=base, status="draft")
    oid = await refs.oid_of(conn, repo, base)
    await conn.execute(sa.insert(schema.ref).values(repo_id=repo.id, name=f"{refs.PULLS}{number}", oid=oid))
    return number


async def find(conn: AsyncConnection, repo: Repo, number: int) -> sa.RowMapping:
    """A discussion.

    Raises:
        NotFound: there is none of that number.
    """
    query = sa.select(schema.discussion).where(
        schema.discussion.c.repo_id == repo.id, schema.discussion.c.num == number
    )
    row = (await conn.execute(query)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"{repo.full_name} has no discussion {number}.")
    return row


async def discussions(
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


async def compare(conn: AsyncConnection, repo: Repo, number: int) -> Comparison:
    """A pull request against the branch it is for.

    Raises:
        NotFound: there is no such pull request.
    """
    row = await find(conn, repo, number)
    if not row["is_pull"]:
        raise NotFound(f"Discussion {number} of {repo.full_name} is no pull request.")
    head = await refs.oid_of(conn, repo, f"{refs.PULLS}{number}")
    base = await refs.oid_of(conn, repo, row["base"])
    start = await _common(conn, repo, base, head)
    old, ours, theirs = [
        await commits.manifest_of(conn, (await commits.find(conn, repo, oid)).tree) for oid in (start, base, head)
    ]
    changes = _changes(old, theirs)
    elsewhere = {change.path: change.after for change in _changes(old, ours)}
    conflicts = [c.path for c in changes if c.path in elsewhere and elsewhere[c.path] != c.after]
    query = sa.select(schema.check_report.c.checks).where(
        schema.check_report.c.repo_id == repo.id, schema.check_report.c.oid == head
    )
    return Comparison(base, head, changes, conflicts, (await conn.execute(query)).scalar() or ())


def _changes(before: Manifest, after: Manifest) -> list[Change]:
    paths = sorted(before.keys() | after.keys())
    pairs = ((path, before.get(path), after.get(path)) for path in paths)
    return [Change(path, old, new) for path, old, new in pairs if old != new]


async def _common(conn: AsyncConnection, repo: Repo, base: str, head: str) -> str:
    """The newest commit that both come from."""
    older = {row.oid for row in await commits.history(conn, repo, base, limit=100_000)}
    for row in await commits.history(conn, repo, head, limit=100_000):
        if row.oid in older:
            return row.oid
    raise Conflict("The pull request and its branch have no commit in common.")


async def merge(hub: Hub, principal: Principal, repo: Repo, number: int) -> Committed:
    """Brings a pull request into its branch, as one commit.

    Raises:
        Forbidden: a check fails, and the hub's setting `enforce_checks` minds it.
        Conflict: it is closed or merged, is a draft, or changes files that the branch has changed meanwhile.
    """
    async with hub.db.read() as conn:
        row = await find(conn, repo, number)
        if row["is_pull"] and row["status"] != "open":
            raise Conflict(f"Pull request {number} is {row['status']}, so it cannot be merged.")
        compared = await compare(conn, repo, number)
    if compared.conflicts:
        raise Conflict(
            f"Both have changed {', '.join(compared.conflicts)}. Change these files in the pull request first."
        )
    failed = [check for check in compared.checks if check["level"] == "error"]
    if failed and hub.settings.enforce_checks == "errors":
        texts = " ".join(f"[{check['id']}] {check['message']}" for check in failed)
        raise Forbidden(f"Pull request {number} cannot be merged while checks fail: {texts}")
    made = await commits.commit(
        hub,
        principal,
        repo,
        row["base"],
        [_operation(change) for change in compared.changes],
        title=f"{row['title']} (#{number})",
        parent=compared.base,
    )
    async with hub.db.write() as conn:
        same = (schema.discussion.c.repo_id == repo.id, schema.discussion.c.num == number)
        await conn.execute(sa.update(schema.discussion).where(*same).values(status="merged", merged=made.oid))
        await comment(conn, repo, number, principal, f"merged as {made.oid}", kind="status")
        await accounts.log(conn, principal, "pull.merge", repo.full_name, number=number, oid=made.oid)
    return made


def _operation(change: Change) -> Operation:
    if change.after is None:
        return Remove(change.path)
    return Put(change.path, change.after.sha256, change.after.lfs)
