"""Commits: a new tree, compared and swapped in, with the index row and the checks that follow from it."""

from __future__ import annotations

import asyncio
import random
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import accounts, names
from ..accounts import Principal
from ..db import schema
from ..db.engine import Database, insert_missing
from ..db.lookup import Lookup
from ..db.schema import now
from ..errors import BadRequest, Conflict, EntryNotFound, Forbidden, RevisionNotFound, StaleParent
from ..index import store
from ..index.examine import examine
from ..index.record import Record
from ..storage import ingest
from . import discussions, git, refs
from .files import Entry, Manifest, RepoFiles, require_kinds
from .repos import Repo, payer_of

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = [
    "MAX_FILES",
    "Commit",
    "Committed",
    "Operation",
    "Put",
    "Remove",
    "RemoveFolder",
    "commit",
    "create_first",
    "depth",
    "find",
    "history",
    "manifest_at",
    "manifest_of",
    "resolve",
    "take_over",
]

MAX_FILES = 20_000  # of a repository
_TRIES = 12
_PAUSE, _LONGEST_PAUSE = 0.005, 1.0  # seconds, before the second try and at most
_GITATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in ("safetensors", "gguf", "model", "png", "jpg")
).encode()


@dataclass(frozen=True)
class Commit:
    """A commit, as a row of the table `commit` tells."""

    oid: str
    parent: str | None
    tree: str
    author: str
    title: str
    message: str
    date: datetime


_IS_SAFETENSORS = schema.blob.c.header.is_not(None)
COLUMNS = [schema.commit.c[name] for name in ("oid", "parent", "tree", "author", "title", "message", "date")]


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


async def find(conn: AsyncConnection, repo: Repo, oid: str) -> Commit:
    """The commit of an id that this repository has."""
    known = _commits.get(oid)
    if known is None:
        query = sa.select(*COLUMNS).where(schema.commit.c.repo_id == repo.id, schema.commit.c.oid == oid)
        known = Commit(*(await conn.execute(query)).one())
        if len(_commits) >= _MAX_COMMITS:
            _commits.clear()
        _commits[oid] = known
    return known


# Commits that were read lately. An id stands for one commit only, in whatever repository.
_commits: dict[str, Commit] = {}
_MAX_COMMITS = 5000


async def resolve(conn: AsyncConnection, repo: Repo, revision: str) -> Commit:
    """The commit that a revision names.

    Raises:
        RevisionNotFound, Conflict: as for `refs.oid_of`.
    """
    return await find(conn, repo, await refs.oid_of(conn, repo, revision))


async def manifest_of(conn: AsyncConnection, tree: str) -> Manifest:
    """The files of a tree, sorted by path. It is shared, so it must not be changed."""
    return _recall(tree) or _keep(tree, (await conn.execute(_TREE.statement, {"oid": tree})).scalar_one())


async def manifest_at(db: Database, tree: str) -> Manifest:
    """As `manifest_of`, without a connection at hand."""
    known = _recall(tree)
    if known is None:
        ((stored,),) = await db.look_up(_TREE, oid=tree)
        known = _keep(tree, stored)
    return known


def _recall(tree: str) -> Manifest | None:
    known = _manifests.pop(tree, None)
    if known is not None:
        _manifests[tree] = known
    return known


def _keep(tree: str, stored: Mapping[str, Any]) -> Manifest:
    known = {path: Entry(path, sha, oid, size, bool(lfs)) for path, (sha, oid, size, lfs) in sorted(stored.items())}
    while len(_manifests) >= _MAX_TREES or sum(map(len, _manifests.values())) > MAX_FILES:
        del _manifests[next(iter(_manifests))]
    _manifests[tree] = known
    return known


_TREE = Lookup(sa.select(schema.tree.c.manifest).where(schema.tree.c.oid == sa.bindparam("oid")))
# Trees that were read lately, the latest last: an id stands for one tree only, and clients ask file by file.
_manifests: dict[str, Manifest] = {}
_MAX_TREES = 200


async def take_over(hub: Hub, conn: AsyncConnection, repo: Repo, oid: str) -> None:
    """Lets the repository's owner pay for the files of a commit, which a branch or a tag names now.

    Raises:
        Forbidden: the owner's quota is used up.
    """
    manifest = await manifest_of(conn, (await find(conn, repo, oid)).tree)
    await ingest.take_over(hub, conn, repo.id, {entry.sha256 for entry in manifest.values()})


async def history(conn: AsyncConnection, repo: Repo, oid: str, limit: int = 50, offset: int = 0) -> list[Commit]:
    """A commit and those before it, the newest first."""
    chain = _chain(repo, oid)
    query = sa.select(*(chain.c[column.name] for column in COLUMNS)).order_by(chain.c.depth)
    return [Commit(*row) for row in (await conn.execute(query.limit(limit).offset(offset))).all()]


async def depth(conn: AsyncConnection, repo: Repo, oid: str) -> int:
    """How many commits `history` has."""
    return int((await conn.execute(sa.select(sa.func.count()).select_from(_chain(repo, oid)))).scalar_one())


def _chain(repo: Repo, oid: str) -> sa.CTE:
    first = sa.select(*COLUMNS, sa.literal(0).label("depth")).where(
        schema.commit.c.repo_id == repo.id, schema.commit.c.oid == oid
    )
    chain = first.cte("chain", recursive=True)
    older = sa.select(*COLUMNS, chain.c.depth + 1).join(
        chain, sa.and_(schema.commit.c.repo_id == repo.id, schema.commit.c.oid == chain.c.parent)
    )
    return chain.union_all(older)


# ---- making a commit ------------------------------------------------------------------------------------------------


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
    chain = _chain(repo, head.oid)
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


async def create_first(hub: Hub, repo: Repo, principal: Principal) -> None:
    """The commit with which every repository begins, so that its default branch always names one."""
    staged = await ingest.stage_bytes(hub, _GITATTRIBUTES, name=".gitattributes")
    (blob,) = await ingest.keep(hub, [staged], repo_id=repo.id)
    first = Entry(".gitattributes", blob.sha256, blob.git_oid, blob.size, lfs=False)
    made = _Made.of(None, {first.path: first}, principal, "initial commit", "")
    record = await examine(hub, repo, RepoFiles(hub, made.manifest))
    async with hub.db.write() as conn:
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
        path = names.check_path(operation.path.rstrip("/"))
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


# ---- what follows from a tree ---------------------------------------------------------------------------------------


async def _index(conn: AsyncConnection, repo: Repo, target: str, made: _Made, record: Record) -> None:
    if target == refs.HEADS + repo.default_branch:
        await store.put(conn, repo, made.commit, record)
    report = {"repo_id": repo.id, "oid": made.oid, "checks": record.checks, "created": now()}
    await insert_missing(conn, schema.check_report, [report])
