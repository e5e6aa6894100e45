"""Pull requests: opened, compared with their branch, merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import accounts
from ..accounts import Principal
from ..db import schema
from ..errors import Conflict, Forbidden, NotFound
from ..repos import commits, discussions, refs
from ..repos.files import Entry, Manifest
from ..repos.repos import Repo
from . import committing
from .committing import Committed, Operation, Put, Remove

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["Change", "Comparison", "compare", "merge", "open_pull"]


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


async def open_pull(conn: AsyncConnection, repo: Repo, principal: Principal, title: str, description: str = "") -> int:
    """An empty pull request against the default branch, a draft until it is opened; commits go to `refs/pr/<number>`.

    Raises:
        Unauthorized, Forbidden, BadRequest: as for `discussions.begin`.
    """
    base = refs.HEADS + repo.default_branch
    number = await discussions.begin(conn, repo, principal, title, description, is_pull=True, base=base, status="draft")
    oid = await refs.oid_of(conn, repo, base)
    await conn.execute(sa.insert(schema.ref).values(repo_id=repo.id, name=f"{refs.PULLS}{number}", oid=oid))
    return number


async def compare(conn: AsyncConnection, repo: Repo, number: int) -> Comparison:
    """A pull request against the branch it is for.

    Raises:
        NotFound: there is no such pull request.
    """
    row = await discussions.find(conn, repo, number)
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
        row = await discussions.find(conn, repo, number)
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
    made = await committing.commit(
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
        await discussions.comment(conn, repo, number, principal, f"merged as {made.oid}", kind="status")
        await accounts.log(conn, principal, "pull.merge", repo.full_name, number=number, oid=made.oid)
    return made


def _operation(change: Change) -> Operation:
    if change.after is None:
        return Remove(change.path)
    return Put(change.path, change.after.sha256, change.after.lfs)
