"""Commits are made: a new tree, compared and swapped in, with the index row and the checks that follow from it."""

from __future__ import annotations

import asyncio
import hashlib
import random
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import accounts, ingest, names
from ..accounts import Principal
from ..db import schema
from ..db.engine import insert_missing
from ..db.schema import now
from ..errors import BadRequest, Conflict, EntryNotFound, Forbidden, RevisionNotFound, StaleParent
from ..hub import Hub
from ..index import store
from ..index.derive import derive
from ..index.examine import examine
from ..index.record import Record
from ..repos import discussions, refs
from ..repos.commits import COLUMNS, MAX_FILES, Commit, chain_of, find, manifest_of
from ..repos.files import Entry, Manifest, RepoFiles, require_kinds
from ..repos.repos import Repo, payer_of
from ..storage import git

__all__ = [
    "Committed",
    "Operation",
    "Put",
    "Remove",
    "RemoveFolder",
    "commit",
    "create_first",
    "keep_first",
    "take_over",
    "usable",
]

_TRIES = 12
_PAUSE, _LONGEST_PAUSE = 0.005, 1.0  # seconds, before the second try and at most
_GITATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in ("safetensors", "gguf", "model", "png", "jpg")
).encode()
_IS_SAFETENSORS = schema.blob.c.header.is_not(None)


@dataclass(frozen=True)
class Put:
    """A file, new or changed, whose bytes are in the hub."""

    path: str
    sha256: str
    lfs: bool


@dataclass(frozen=True)
class Remove:
    """A file that goes."""

    path: str


@dataclass(frozen=True)
class RemoveFolder:
    """A folder that goes, with all that is in it."""

    path: str


Operation = Put | Remove | RemoveFolder


@dataclass(frozen=True)
class Committed:
    """What came of a commit.

    Attributes:
        oid: the head of the branch afterwards.
        pull: the number of the pull request it opened.
        checks: what the checks say of the new tree.
        changed: False where the tree was like that already, so that no commit was made.
    """

    oid: str
    pull: int | None = None
    checks: Sequence[dict[str, Any]] = ()
    changed: bool = True


async def commit(
    hub: Hub,
    principal: Principal,
    repo: Repo,
    revision: str,
    operations: Sequence[Operation],
    *,
    title: str,
    message: str = "",
    parent: str | None = None,
    create_pull: bool = False,
) -> Committed:
    """Applies operations to a branch, or to the head of a pull request.

    When the branch moves meanwhile, the operations are applied to its new head. A commit that changes nothing is not
    made: the client sends a commit again when it did not hear the answer.

    Args:
        revision: branch (`main`) or pull request (`refs/pr/3`).
        parent: the head that the caller saw; another one is an error then, unless a pull request begins there.
        create_pull: opens a pull request against `revision` with the result, instead of moving it.

    Raises:
        RevisionNotFound: there is no such branch or pull request.
        StaleParent: `parent` is not the head or, where a pull request begins there, none of the commits before it.
        EntryNotFound: a file to remove is not there.
        BadRequest: a path or title is not allowed, or bytes were not uploaded.
        Unprocessable: bytes that came without a name are not what their name says.
        Conflict: others commit faster than this could be applied.
        Forbidden: the pull request is closed or merged, or the quota of who pays for the bytes is used up.
    """
    if not title.strip():
        raise BadRequest("A commit needs a title: the first line of its message.")
    target = refs.head_of(revision)
    for turn in range(_TRIES):
        if turn:  # all who lost the race would lose the next one too if they began at the same moment
            await asyncio.sleep(random.uniform(0, min(_PAUSE * 2**turn, _LONGEST_PAUSE)))
        async with hub.db.read() as conn:
            head = await _head(conn, repo, target)
            try:
                onto = await _onto(conn, repo, revision, head, parent, create_pull=create_pull)
                before = await manifest_of(conn, onto.tree)
                after = await _apply(conn, principal, repo, before, operations)
            except (StaleParent, EntryNotFound):
                if not create_pull and await _is_made(conn, principal, repo, head, operations, title.strip(), parent):
                    return Committed(head.oid, changed=False)
                raise
        if not turn:
            apart = {op.path for op in operations if isinstance(op, Put) and op.lfs}
            await require_kinds(hub, [entry for path, entry in after.items() if path in apart])
        made = _Made.of(onto, after, principal, title.strip(), message.strip())
        if made.tree == head.tree and not create_pull:
            return Committed(head.oid, changed=False)
        record = await examine(hub, repo, RepoFiles(hub, after))
        async with hub.db.write() as conn:
            query = sa.select(schema.ref.c.oid).where(schema.ref.c.repo_id == repo.id, schema.ref.c.name == target)
            if (await conn.execute(query.with_for_update())).scalar() != head.oid:
                continue
            pull = await _open_pull(conn, principal, repo, target, made) if create_pull else None
            moved = f"{refs.PULLS}{pull}" if pull else target
            await _store(hub, conn, principal, repo, moved, made)
            await _index(conn, repo, moved, made, record)
            if target.startswith(refs.PULLS):
                await _publish(conn, repo, int(target.removeprefix(refs.PULLS)))
        return Committed(made.oid, pull, record.checks)
    raise Conflict(
        f"Others commit to {revision} of {repo.full_name} faster than this commit could be applied. Try again."
    )


async def _onto(
    conn: AsyncConnection, repo: Repo, revision: str, head: Commit, parent: str | None, *, create_pull: bool
) -> Commit:
    """The commit that a new one follows: the head, or the older one at which its pull request begins."""
    if parent is None or parent == head.oid:
        return head
    if not create_pull:
        raise StaleParent(
            f"{revision} of {repo.full_name} is at {head.oid}, not at {parent}. Get its newest commit, then try again."
        )
    chain = chain_of(repo, head.oid)
    if (await conn.execute(sa.select(chain.c.oid).where(chain.c.oid == parent))).scalar() is None:
        raise StaleParent(
            f"{parent} is no commit on {revision} of {repo.full_name}, so no pull request can begin there. Name one "
            "that is, or none for the newest."
        )
    return await find(conn, repo, parent)


async def _is_made(
    conn: AsyncConnection,
    principal: Principal,
    repo: Repo,
    head: Commit,
    operations: Sequence[Operation],
    title: str,
    parent: str | None,
) -> bool:
    """Whether the head is this very commit, sent again: then its parent is stale and its deletions are done."""
    if head.parent is None or (head.author, head.title) != (principal.name, title) or parent not in (None, head.parent):
        return False
    before = await manifest_of(conn, (await find(conn, repo, head.parent)).tree)
    try:
        after = await _apply(conn, principal, repo, before, operations)
    except EntryNotFound:
        return False
    return git.tree_oid((entry.path, entry.oid) for entry in after.values()) == head.tree


async def keep_first(hub: Hub) -> ingest.Blob:
    """Brings the bytes of every repository's first commit into the hub, unless they are here: before the transaction of
    `create_first`, so that a crash within it leaves no bytes that the database does not know."""
    here = (schema.blob.c.sha256 == hashlib.sha256(_GITATTRIBUTES).hexdigest(), schema.blob.c.state == "ok")
    async with hub.db.write() as conn:
        await conn.execute(sa.update(schema.blob).where(*here).values(last_ref=now()))
        known = sa.select(schema.blob.c.sha256, schema.blob.c.git_oid, schema.blob.c.size).where(*here)
        row = (await conn.execute(known)).one_or_none()
    if row is not None:
        return ingest.Blob(*row)
    staged = await ingest.stage_bytes(hub, _GITATTRIBUTES, name=".gitattributes")
    (blob,) = await ingest.keep(hub, [staged], repo_id=None)
    return blob


async def create_first(hub: Hub, conn: AsyncConnection, repo: Repo, principal: Principal, blob: ingest.Blob) -> None:
    """The commit with which every repository begins, in the transaction that makes it: nobody sees one without.

    Args:
        blob: of `keep_first`.
    """
    await ingest.renew(hub, conn, repo.id, [blob.sha256])
    first = Entry(".gitattributes", blob.sha256, blob.git_oid, blob.size, lfs=False)
    made = _Made.of(None, {first.path: first}, principal, "initial commit", "")
    record = await derive(RepoFiles(hub, made.manifest))
    await _store(hub, conn, principal, repo, refs.HEADS + repo.default_branch, made)
    await _index(conn, repo, refs.HEADS + repo.default_branch, made, record)


@dataclass(frozen=True)
class _Made:
    """A commit that is not stored yet."""

    manifest: Manifest
    tree: str
    commit: Commit

    @property
    def oid(self) -> str:
        return self.commit.oid

    @classmethod
    def of(cls, head: Commit | None, manifest: Manifest, principal: Principal, title: str, message: str) -> _Made:
        tree = git.tree_oid((entry.path, entry.oid) for entry in manifest.values())
        date = now().replace(microsecond=0)
        parent = head.oid if head else None
        email = f"{principal.name}@users.adapterhub"
        oid = git.commit_oid(tree, parent, principal.name, email, date, title, message)
        return cls(manifest, tree, Commit(oid, parent, tree, principal.name, title, message, date))


async def _head(conn: AsyncConnection, repo: Repo, target: str) -> Commit:
    query = sa.select(schema.ref.c.oid).where(schema.ref.c.repo_id == repo.id, schema.ref.c.name == target)
    oid = (await conn.execute(query)).scalar()
    if oid is None:
        raise RevisionNotFound(f"Invalid rev id: {repo.full_name} has no branch or pull request {target!r}")
    if target.startswith(refs.PULLS):
        number = int(target.removeprefix(refs.PULLS))
        same = (schema.discussion.c.repo_id == repo.id, schema.discussion.c.num == number)
        status = (await conn.execute(sa.select(schema.discussion.c.status).where(*same))).scalar_one()
        if status in ("closed", "merged"):
            raise Forbidden(f"Pull request {number} of {repo.full_name} is {status}. Open a new one.")
    return await find(conn, repo, oid)


async def _apply(
    conn: AsyncConnection, principal: Principal, repo: Repo, before: Manifest, operations: Iterable[Operation]
) -> Manifest:
    """The files after some operations."""
    operations = list(operations)
    blobs = await _blobs(conn, principal, repo, {op.sha256 for op in operations if isinstance(op, Put)})
    files = dict(before)
    for operation in operations:
        path = operation.path.rstrip("/")
        is_there = path in files if isinstance(operation, Remove) else isinstance(operation, RemoveFolder) and path
        if not is_there:  # what goes may have any name: it came when others were allowed
            names.check_path(path)
        if isinstance(operation, Put):
            oid, size, is_safetensors = blobs[operation.sha256]
            if path.endswith(".safetensors") and not is_safetensors:
                raise BadRequest(f"{path} is not a valid safetensors file. Save it with safetensors, or rename it.")
            pointer = git.blob_oid(git.lfs_pointer(operation.sha256, size)) if operation.lfs else oid
            files[path] = Entry(path, operation.sha256, pointer, size, operation.lfs)
        elif isinstance(operation, Remove):
            if files.pop(path, None) is None:
                # The client knows the first words, and adds a hint to them.
                raise EntryNotFound(f"A file with this name doesn't exist: {path}. So it cannot be deleted.")
        else:
            files = {name: entry for name, entry in files.items() if not name.startswith(f"{path}/")}
    _check_tree(files)
    return dict(sorted(files.items()))


def _check_tree(files: Manifest) -> None:
    """Refuses trees that some file system could not hold."""
    if len(files) > MAX_FILES:
        raise BadRequest(f"{len(files)} files are too many: a repository may hold {MAX_FILES}.")
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in files:
        folded = unicodedata.normalize("NFC", path).casefold()
        if folded in seen:
            raise BadRequest(f"{path!r} and {seen[folded]!r} differ only in case. Rename one of them.")
        seen[folded] = path
        parts = folded.split("/")
        for end in range(1, len(parts)):
            folders.setdefault("/".join(parts[:end]), path)
    for folded in seen.keys() & folders.keys():
        raise BadRequest(f"{seen[folded]!r} is a file, but {folders[folded]!r} needs it to be a folder.")


async def _blobs(
    conn: AsyncConnection, principal: Principal, repo: Repo, wanted: set[str]
) -> dict[str, tuple[str, int, bool]]:
    """As `usable`, but all of them must be: to know a hash is not to hold the bytes."""
    known = await usable(conn, principal, repo, wanted)
    for sha256 in wanted - known.keys():
        raise BadRequest(f"The bytes with SHA-256 {sha256} were not uploaded to {repo.full_name}. Upload them first.")
    return known


async def usable(
    conn: AsyncConnection, principal: Principal, repo: Repo, wanted: Iterable[str]
) -> dict[str, tuple[str, int, bool]]:
    """Blobs that are here, and in `repo` or another repository that the caller may read.

    Returns:
        SHA-256 to git's id, the size, and whether it is a safetensors file.
    """
    own = [name for name in principal.namespaces if principal.may_read(name, name)]
    query = (
        sa.select(schema.blob.c.sha256, schema.blob.c.git_oid, schema.blob.c.size, _IS_SAFETENSORS)
        .join(schema.blob_use, schema.blob_use.c.sha256 == schema.blob.c.sha256)
        .join(schema.repo, schema.repo.c.id == schema.blob_use.c.repo_id)
        .where(
            schema.blob.c.sha256.in_(set(wanted)),
            schema.blob.c.state.in_(("ok", "quarantined")),
            sa.or_(
                schema.repo.c.id == repo.id,
                sa.not_(schema.repo.c.private),
                schema.repo.c.namespace.in_(own),
            ),
        )
        .distinct()
    )
    return {sha256: (oid, size, bool(header)) for sha256, oid, size, header in await conn.execute(query)}


async def _open_pull(conn: AsyncConnection, principal: Principal, repo: Repo, base: str, made: _Made) -> int:
    number = await discussions.begin(
        conn, repo, principal, made.commit.title, made.commit.message, is_pull=True, base=base, status="open"
    )
    await conn.execute(sa.insert(schema.ref).values(repo_id=repo.id, name=f"{refs.PULLS}{number}", oid=made.oid))
    return number


async def _publish(conn: AsyncConnection, repo: Repo, number: int) -> None:
    """Opens a pull request that was a draft until its first commit."""
    draft = (schema.discussion.c.repo_id == repo.id, schema.discussion.c.num == number)
    update = sa.update(schema.discussion).where(*draft, schema.discussion.c.status == "draft")
    await conn.execute(update.values(status="open"))


async def _store(hub: Hub, conn: AsyncConnection, principal: Principal, repo: Repo, target: str, made: _Made) -> None:
    rows = {path: [e.sha256, e.oid, e.size, int(e.lfs)] for path, e in made.manifest.items()}
    await insert_missing(conn, schema.tree, [{"oid": made.tree, "manifest": rows}])
    fields = {column.name: getattr(made.commit, column.name) for column in COLUMNS}
    await insert_missing(conn, schema.commit, [{"repo_id": repo.id, **fields}])
    blobs = {entry.sha256 for entry in made.manifest.values()}
    if target.startswith(refs.HEADS):
        await ingest.take_over(hub, conn, repo.id, blobs)
    await ingest.use(hub, conn, repo.id, blobs, payer_id=payer_of(principal, repo))
    mine = (schema.ref.c.repo_id == repo.id, schema.ref.c.name == target)
    if not (await conn.execute(sa.update(schema.ref).where(*mine).values(oid=made.oid))).rowcount:
        await conn.execute(sa.insert(schema.ref).values(repo_id=repo.id, name=target, oid=made.oid))
    used = sa.select(schema.blob_use.c.sha256).where(schema.blob_use.c.repo_id == repo.id)
    size = sa.select(sa.func.coalesce(sa.func.sum(schema.blob.c.size), 0)).where(schema.blob.c.sha256.in_(used))
    values = {"updated": made.commit.date, "bytes": size.scalar_subquery()}
    await conn.execute(sa.update(schema.repo).where(schema.repo.c.id == repo.id).values(**values))
    await accounts.log(conn, principal, "commit", repo.full_name, ref=target, oid=made.oid)


async def _index(conn: AsyncConnection, repo: Repo, target: str, made: _Made, record: Record) -> None:
    if target == refs.HEADS + repo.default_branch:
        await store.put(conn, repo, made.commit, record)
    report = {"repo_id": repo.id, "oid": made.oid, "checks": record.checks, "created": now()}
    await insert_missing(conn, schema.check_report, [report])


async def take_over(hub: Hub, conn: AsyncConnection, repo: Repo, oid: str) -> None:
    """Lets the repository's owner pay for the files of a commit, which a branch or a tag names now.

    Raises:
        Forbidden: the owner's quota is used up.
    """
    manifest = await manifest_of(conn, (await find(conn, repo, oid)).tree)
    await ingest.take_over(hub, conn, repo.id, {entry.sha256 for entry in manifest.values()})
