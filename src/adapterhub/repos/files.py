"""The files of a commit, as the index and the checks read them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa

from ..content.kinds import HEAD, kind_of, misnamed
from ..content.reading import mapped
from ..content.texts import MAX_JSON
from ..db import schema
from ..errors import EntryNotFound, TooLarge, Unprocessable
from ..settings import MiB

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["Entry", "Files", "Manifest", "RepoFiles", "require_kinds"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a tree.

    Attributes:
        path: where it stands.
        sha256: of its bytes.
        oid: git's id of the file, or of its pointer where it is in large file storage.
        size: of its bytes.
        lfs: whether git would keep it in large file storage.
    """

    path: str
    sha256: str
    oid: str
    size: int
    lfs: bool

    @property
    def etag(self) -> str:
        """What the client takes for the version of the file."""
        return self.sha256 if self.lfs else self.oid


Manifest = dict[str, Entry]


class Files(Protocol):
    """The files of one commit."""

    @property
    def manifest(self) -> Manifest:
        """Path to entry."""

    async def read(self, path: str, limit: int = ...) -> bytes:
        """The bytes of a file."""

    async def header(self, path: str) -> Mapping[str, Any] | None:
        """The tensors of a safetensors file: name to [dtype, shape]."""


@dataclass(frozen=True)
class RepoFiles:
    """The files of a manifest, with their bytes."""

    hub: Hub
    manifest: Manifest

    async def read(self, path: str, limit: int = 2 * MiB) -> bytes:
        """The bytes of a file.

        Raises:
            EntryNotFound: there is none of that path.
            TooLarge: it has more than `limit` bytes.
        """
        entry = self.manifest.get(path)
        if entry is None:
            raise EntryNotFound(f"{path} does not exist")
        if entry.size > limit:
            raise TooLarge(f"{path} has {entry.size} bytes; at most {limit} are read here.")
        return b"".join([chunk async for chunk in self.hub.blobs.open(entry.sha256)])

    async def header(self, path: str) -> dict[str, Any] | None:
        """The tensors of a safetensors file, `{name: [dtype, shape]}`; None for another file."""
        entry = self.manifest.get(path)
        if entry is None:
            return None
        async with self.hub.db.read() as conn:
            query = sa.select(schema.blob.c.header).where(schema.blob.c.sha256 == entry.sha256)
            header: dict[str, Any] | None = (await conn.execute(query)).scalar()
            return header


async def require_kinds(hub: Hub, entries: Iterable[Entry]) -> None:
    """Looks again at files whose bytes came without their names, now that they have some.

    Raises:
        Unprocessable: one is not what its name says.
        StorageUnavailable: it cannot be read.
    """
    if hub.settings.pickle_policy != "refuse":
        return
    seen: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        seen.setdefault((entry.sha256, kind_of(entry.path)), entry)
    for (sha256, expected), entry in seen.items():
        # What they are was proven when they came, all but JSON, which is text until its name is known.
        wanted = entry.size if expected == "json" and entry.size <= MAX_JSON else min(entry.size, HEAD)
        with tempfile.SpooledTemporaryFile(HEAD, dir=str(hub.scratch)) as file:
            async for chunk in hub.blobs.open(sha256, 0, wanted):
                file.write(chunk)
            reason = await asyncio.to_thread(_misnamed, file, entry)
        if reason:
            raise Unprocessable(reason)


def _misnamed(file: tempfile.SpooledTemporaryFile[bytes], entry: Entry) -> str | None:
    if file.tell() > HEAD:
        with mapped(file) as data:
            return misnamed(entry.path, data, entry.size)
    file.seek(0)
    return misnamed(entry.path, file.read(), entry.size)
