"""Looking everything over: from refs to commits, trees and bytes, and what is derived from them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..accounts import Principal
from ..db import schema
from ..db.engine import insert_missing
from ..repos import refs, repos
from ..storage import git
from .gc import named, set_bytes

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["Finding", "check", "finish_creations"]

_PRESENT = ("ok", "quarantined")
# What the checks say of an adapter depends on the rest of the hub, and `id` on the order of insertions.
_NOT_COMPARED = {"id", "checks", "errors"}
_INDEX = (schema.adapter, schema.adapter_tag, schema.dependency, schema.evaluation)


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        where: what it is about: a repository, a commit, a blob.
        text: what is wrong.
        repaired: whether it is right now.
    """

    where: str
    text: str
    repaired: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.text}{' (repaired)' if self.repaired else ''}"


async def check(hub: Hub, *, deep: bool = False, repair: bool = False) -> AsyncIterator[Finding]:
    """Looks over a hub, which may be in use meanwhile.

    Args:
        deep: reads and hashes every blob.
        repair: puts right what can be derived: uses and sums of bytes, the index, broken-off creations.
    """
    if repair:
        for name in await finish_creations(hub):
            yield Finding(name, "had no first commit", repaired=True)
    for part in (_refs, _commits, _trees):
        async for finding in part(hub):
            yield finding
    for findings in (_uses(hub, repair), _sums(hub, repair), _blobs(hub, deep), _index(hub, repair)):
        async for finding in findings:
            yield finding


async def finish_creations(hub: Hub) -> list[str]:
    """Gives repositories their first commit whose creation a crash broke off, as it could in older versions.

    Returns:
        Their names.
    """
    from ..changes.committing import create_first, keep_first

    has_ref = sa.exists().where(schema.ref.c.repo_id == schema.repo.c.id)
    query = (
        sa.select(schema.repo.c.id, schema.account.c.name)
        .join(schema.account, schema.account.c.id == schema.repo.c.owner_id)
        .where(sa.not_(has_ref))
    )
    async with hub.db.read() as conn:
        found = [(await repos.by_id(conn, repo_id), owner) for repo_id, owner in (await conn.execute(query)).all()]
    for repo, owner in found:
        first = await keep_first(hub)
        async with hub.db.write() as conn:
            await create_first(hub, conn, repo, Principal(id=repo.owner_id, name=owner, role="write"), first)
    return [repo.full_name for repo, _ in found]


# ---- refs, commits, trees -------------------------------------------------------------------------------------------


def _full_name() -> sa.ColumnElement[str]:
    return schema.repo.c.namespace + "/" + schema.repo.c.name


async def _refs(hub: Hub) -> AsyncIterator[Finding]:
    ref, commit, repo = schema.ref, schema.commit, schema.repo
    same = sa.and_(commit.c.repo_id == ref.c.repo_id, commit.c.oid == ref.c.oid)
    dangling = (
        sa.select(_full_name(), ref.c.name, ref.c.oid)
        .join(repo, repo.c.id == ref.c.repo_id)
        .outerjoin(commit, same)
        .where(commit.c.oid.is_(None))
    )
    default = sa.exists().where(ref.c.repo_id == repo.c.id, ref.c.name == refs.HEADS + repo.c.default_branch)
    headless = sa.select(_full_name(), repo.c.default_branch).where(sa.not_(default))
    async with hub.db.read() as conn:
        for name, ref_name, oid in (await conn.execute(dangling)).all():
            yield Finding(name, f"{ref_name} names the commit {oid}, which does not exist")
        for name, branch in (await conn.execute(headless)).all():
            yield Finding(name, f"the default branch {branch!r} does not exist")


async def _commits(hub: Hub) -> AsyncIterator[Finding]:
    commit, repo = schema.commit, schema.repo
    query = sa.select(_full_name().label("full_name"), commit).join(repo, repo.c.id == commit.c.repo_id)
    parent = commit.alias()
    lost = (
        sa.select(_full_name(), commit.c.oid, commit.c.parent)
        .join(repo, repo.c.id == commit.c.repo_id)
        .outerjoin(parent, sa.and_(parent.c.repo_id == commit.c.repo_id, parent.c.oid == commit.c.parent))
        .where(commit.c.parent.is_not(None), parent.c.oid.is_(None))
    )
    async with hub.db.read() as conn:
        for name, oid, missing in (await conn.execute(lost)).all():
            yield Finding(f"{name}@{oid}", f"its parent {missing} does not exist")
        async for row in (await conn.stream(query)).mappings():
            email = f"{row['author']}@users.adapterhub"
            oid = git.commit_oid(
                row["tree"], row["parent"], row["author"], email, row["date"], row["title"], row["message"]
            )
            if oid != row["oid"]:
                yield Finding(f"{row['full_name']}@{row['oid']}", f"its content has the id {oid}")


async def _trees(hub: Hub) -> AsyncIterator[Finding]:
    async with hub.db.read() as reader, hub.db.read() as conn:
        async for oid, manifest in await reader.stream(sa.select(schema.tree)):
            if git.tree_oid((path, entry[1]) for path, entry in manifest.items()) != oid:
                yield Finding(f"tree {oid}", "its content has another id")
            known = await _known(conn, {entry[0] for entry in manifest.values()})
            for path, (sha256, git_oid, size, lfs) in manifest.items():
                stored = known.get(sha256)
                pointer = git.blob_oid(git.lfs_pointer(sha256, size)) if lfs else git_oid
                if stored is None:
                    yield Finding(f"tree {oid}", f"{path} needs the blob {sha256}, which is not here")
                elif stored[1] != size or pointer != git_oid or not (lfs or stored[0] == git_oid):
                    yield Finding(f"tree {oid}", f"{path} and the blob {sha256} differ in size or id")


async def _known(conn: AsyncConnection, wanted: set[str]) -> Mapping[str, tuple[str, int]]:
    """Git's id and the size of blobs that are here."""
    blob = schema.blob
    query = sa.select(blob.c.sha256, blob.c.git_oid, blob.c.size).where(
        blob.c.sha256.in_(wanted), blob.c.state.in_(_PRESENT)
    )
    return {sha256: (oid, size) for sha256, oid, size in (await conn.execute(query)).all()}


# ---- bytes ----------------------------------------------------------------------------------------------------------


async def _uses(hub: Hub, repair: bool) -> AsyncIterator[Finding]:
    """A repository must be noted as a holder of all that its commits name."""
    names = named("sqlite" if hub.db.is_sqlite else "postgresql").subquery()
    noted = schema.blob_use
    same = sa.and_(noted.c.repo_id == names.c.repo_id, noted.c.sha256 == names.c.sha256)
    missing = (
        sa.select(names.c.repo_id, _full_name(), names.c.sha256)
        .join(schema.repo, schema.repo.c.id == names.c.repo_id)
        .outerjoin(noted, same)
        .where(noted.c.sha256.is_(None))
    )
    async with hub.db.read() as conn:
        unnoted = (await conn.execute(missing)).all()
        known = await _known(conn, {sha256 for _, _, sha256 in unnoted})
    for repo_id, name, sha256 in unnoted:
        if repair and sha256 in known:
            async with hub.db.write() as conn:
                await insert_missing(conn, noted, [{"repo_id": repo_id, "sha256": sha256}])
        yield Finding(name, f"is not noted as a holder of the blob {sha256}", repair and sha256 in known)


async def _sums(hub: Hub, repair: bool) -> AsyncIterator[Finding]:
    noted, blob, repo = schema.blob_use, schema.blob, schema.repo
    total = sa.func.coalesce(sa.func.sum(blob.c.size), 0)
    query = (
        sa.select(repo.c.id, _full_name(), repo.c.bytes, total)
        .outerjoin(noted, noted.c.repo_id == repo.c.id)
        .outerjoin(blob, blob.c.sha256 == noted.c.sha256)
        .group_by(repo.c.id)
        .having(repo.c.bytes > total)
    )
    async with hub.db.read() as conn:
        wrong = (await conn.execute(query)).all()
    for repo_id, name, noted_bytes, real in wrong:
        if repair:
            async with hub.db.write() as conn:
                await set_bytes(conn, repo_id)
        yield Finding(name, f"is said to hold {noted_bytes} bytes, but holds {real}", repair)


async def _blobs(hub: Hub, deep: bool) -> AsyncIterator[Finding]:
    """Rows and bytes must belong together. First the names of the bytes: a row is always there before its bytes."""
    unknown = {name async for name in hub.blobs.names()}
    blob = schema.blob
    async with hub.db.read() as reader:
        async for sha256, oid, size, state in await reader.stream(
            sa.select(blob.c.sha256, blob.c.git_oid, blob.c.size, blob.c.state)
        ):
            unknown.discard(sha256)
            if state not in _PRESENT:
                continue
            found = await hub.blobs.size(sha256)
            if found != size:
                if await _is_still_there(hub, sha256):
                    yield Finding(f"blob {sha256}", f"should have {size} bytes, but has {found}")
            elif deep and not await _hashes_to(hub, sha256, oid, size):
                yield Finding(f"blob {sha256}", "its bytes have another hash")
    for sha256 in sorted(unknown):
        yield Finding(f"blob {sha256}", "its bytes are stored, but the database does not know them")


async def _is_still_there(hub: Hub, sha256: str) -> bool:
    """Whether a blob is still to be there: it may have been collected meanwhile."""
    async with hub.db.read() as conn:
        return sha256 in await _known(conn, {sha256})


async def _hashes_to(hub: Hub, sha256: str, oid: str, size: int) -> bool:
    digest = git.BlobHash(size)
    async for chunk in hub.blobs.open(sha256):
        digest.update(chunk)
    return digest.sha256.hexdigest() == sha256 and digest.oid == oid


# ---- the index ------------------------------------------------------------------------------------------------------


class _Undo(Exception):
    """Ends a transaction without keeping it."""


async def _index(hub: Hub, repair: bool) -> AsyncIterator[Finding]:
    async with hub.db.read() as conn:
        ids = (await conn.execute(sa.select(schema.repo.c.id).order_by(schema.repo.c.id))).scalars().all()
    for repo_id in ids:
        name = await _index_differs(hub, repo_id, repair)
        if name is not None:
            yield Finding(name, "its row in the index is not what its files say", repair)


async def _index_differs(hub: Hub, repo_id: int, repair: bool) -> str | None:
    """The name of a repository whose rows are not those that its files give."""
    from ..errors import NotFound
    from ..index import store
    from .reindex import derived

    try:
        repo, head, record = await derived(hub, repo_id)
    except (NotFound, sa.exc.NoResultFound):
        return None  # deleted meanwhile, or found by `_refs` already
    differs = False
    try:
        async with hub.db.write() as conn:
            if await refs.oid_of(conn, repo, refs.HEADS + repo.default_branch) != head.oid:
                return None  # a commit has come meanwhile, and its rows with it
            before = await _rows(conn, repo_id)
            await store.put(conn, await repos.by_id(conn, repo_id), head, record)
            differs = before != await _rows(conn, repo_id)
            if not (differs and repair):
                raise _Undo
    except _Undo:
        pass
    return repo.full_name if differs else None


async def _rows(conn: AsyncConnection, repo_id: int) -> list[list[dict[str, Any]]]:
    """All rows of the index about a repository."""
    found = []
    for table in _INDEX:
        columns = [column for column in table.c if column.name not in _NOT_COMPARED]
        rows = (await conn.execute(sa.select(*columns).where(table.c.repo_id == repo_id))).mappings().all()
        found.append(sorted((dict(row) for row in rows), key=repr))
    return found
