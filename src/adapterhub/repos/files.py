"""The files of a commit, as the index and the checks read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa

from ..db import schema
from ..errors import EntryNotFound, TooLarge
from ..settings import MiB

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["Entry", "Files", "Manifest", "RepoFiles"]


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
